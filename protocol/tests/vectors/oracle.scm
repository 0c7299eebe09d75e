;;; A second opinion on narinfos and their signatures, from libgcrypt by way of
;;; guile-gcrypt, for tests to compare with.
;;;
;;;   guile oracle.scm sign COUNT   prints a public key and COUNT lines of "DIGEST FIELD"
;;;   guile oracle.scm judge        reads lines of "PUBLIC-KEY DIGEST FIELD", prints a verdict each
;;;
;;; Keys and digests are in hexadecimal, fields are the values of Signature fields.  The verdicts
;;; are those of Guix, whose rules are followed here step by step: 'valid-signature', or why not.

(define-module (oracle)
  #:use-module (gcrypt base16)
  #:use-module (gcrypt base64)
  #:use-module (gcrypt hash)
  #:use-module (gcrypt pk-crypto)
  #:use-module (ice-9 match)
  #:use-module (ice-9 rdelim)
  #:use-module (rnrs bytevectors)
  #:use-module (srfi srfi-1)
  #:export (new-key key-part sexp-text signature-field encode-field narinfo-verdict))

(define (new-key)
  "Return a key pair of the kind that 'guix archive --generate-key' makes."
  (generate-key
   (string->canonical-sexp "(genkey (ecc (curve Ed25519) (flags rfc6979)))")))

(define (key-part pair part)
  (find-sexp-token pair part))

(define sexp-text canonical-sexp->string)

(define (encode-field text)
  "Return the Signature field for TEXT, that of an s-expression."
  (string-append "1;synthetic.example;" (base64-encode (string->utf8 text))))

(define (signature-field pair digest)
  "Return the Signature field and the text inside for DIGEST, signed with PAIR."
  (let* ((data (bytevector->hash-data digest "sha256"))
         (text (sexp-text
                (string->canonical-sexp
                 (string-append "(signature " (sexp-text data)
                                (sexp-text (sign data (key-part pair 'private-key)))
                                (sexp-text (key-part pair 'public-key)) ")")))))
    (values (encode-field text) text)))

(define (field->signature field)
  "Return the s-expression in FIELD, or #f."
  (match (string-split field #\;)
    ((version host text)
     (and (and=> (string->number version) (lambda (number) (= 1 number)))
          (false-if-exception
           (string->canonical-sexp (utf8->string (base64-decode text))))))
    (_ #f)))

(define (signature-verdict signature digest keys)
  (let ((subject (find-sexp-token signature 'public-key))
        (data    (find-sexp-token signature 'data))
        (values  (find-sexp-token signature 'sig-val)))
    (cond ((not (and data subject)) 'corrupt-signature)
          ((not (member (canonical-sexp->sexp subject) keys)) 'unauthorized-key)
          ((not (equal? (hash-data->bytevector data) digest)) 'hash-mismatch)
          ((and values (verify values data subject)) 'valid-signature)
          (else 'invalid-signature))))

(define (field-verdict field digest keys)
  (catch #t
    (lambda ()
      (let ((signature (field->signature field)))
        (if signature (signature-verdict signature digest keys) 'unsigned)))
    (const 'error)))

(define (text->fields text)
  "Read the fields of a narinfo up to its first empty line; throw at what is no field."
  (let loop ((lines (string-split text #\newline)) (fields '()))
    (match lines
      (() (reverse fields))
      (("" rest ...) (if (null? fields) (loop rest fields) (reverse fields)))
      ((line rest ...)
       (if (char=? #\# (string-ref line 0))
           (loop rest fields)
           (let ((colon (string-index line #\:)))
             (unless (and colon (char-alphabetic? (string-ref line 0)))
               (error "not a field" line))
             (loop rest (alist-cons (string-take line colon)
                                    (string-trim (string-drop line (+ 1 colon)))
                                    fields))))))))

(define (narinfo-verdict text keys)
  "Return the verdict on the narinfo TEXT with KEYS, public keys as s-expressions."
  (catch #t
    (lambda ()
      (let* ((fields (text->fields text))
             (index  (string-contains text "Signature:"))
             (head   (and index (string-take text index)))
             (field  (assoc-ref fields "Signature")))
        (cond ((not (assoc-ref fields "URL")) 'error)
              ((not (and field
                         (every (lambda (name) (assoc-ref (text->fields head) name))
                                '("StorePath" "NarHash" "References"))))
               'unsigned)
              (else (field-verdict field (sha256 (string->utf8 head))
                                   (map canonical-sexp->sexp keys))))))
    (const 'error)))

(define (hex->key hex)
  `(public-key (ecc (curve Ed25519) (q ,(base16-string->bytevector hex)))))

(define (judge)
  (let loop ((line (read-line)))
    (unless (eof-object? line)
      (match (string-split line #\space)
        ((key digest field ...)
         (display (field-verdict (string-join field " ") (base16-string->bytevector digest)
                                 (list (hex->key key))))
         (newline)))
      (loop (read-line)))))

(define (sign-many count)
  (let ((pair (new-key)))
    (match (canonical-sexp->sexp (key-part pair 'public-key))
      (('public-key ('ecc _ ('q q)))
       (display (bytevector->base16-string q))
       (newline)))
    (do ((n 0 (+ n 1)))
        ((= n count))
      (let ((digest (sha256 (string->utf8 (number->string n)))))
        (format #t "~a ~a~%" (bytevector->base16-string digest)
                (signature-field pair digest))))))

(match (command-line)
  ((_ "judge") (judge))
  ((_ "sign" count) (sign-many (string->number count)))
  (_ #t))
