;;; Makes the vectors beside this file: keys, valid narinfos and hostile ones, with a fresh pair of
;;; keys at each run, whose secret parts are thrown away.
;;;
;;;   cd protocol/tests/vectors && guile -L . make.scm
;;;
;;; EXPECTED.tsv has a line for each narinfo: its file, what is required ("accept", "refuse", or
;;; "may" where Guix is more lenient than one must be), and the verdict of oracle.scm.

(use-modules (oracle)
             (gcrypt hash)
             (gcrypt pk-crypto)
             (ice-9 format)
             (ice-9 match)
             (ice-9 regex)
             (ice-9 textual-ports)
             (rnrs bytevectors)
             (srfi srfi-1)
             (srfi srfi-11))

(define A (new-key))
(define B (new-key))
(define stranger (new-key))
(define acl (list (key-part A 'public-key) (key-part B 'public-key)))

(define digits "0123456789abcdfghijklmnpqrsvwxyz")
(define (random-base32 length)
  ;; The first digit of a hash spells fewer than five bits.
  (list->string (cons #\0 (map (lambda _ (string-ref digits (random 32))) (iota (- length 1))))))

(define item "0c3kbz63dj2m6xs8c5g7x9pwlv2qhr1a-hello-2.12.1")
(define tail
  (format #f "URL: nar/zstd/~a~%Compression: zstd~%FileSize: 51546~%" item))

(define* (signed-part #:key (size 329287) (extra ""))
  (format #f "StorePath: /gnu/store/~a
NarHash: sha256:~a
NarSize: ~a
References: ~a 1xkk83mrzfi0vxkbcywas28h7vgmajhr-glibc-2.39
System: x86_64-linux
Deriver: 0mj35idv77qvdj1js8biaw9hnfzhpkgl-hello-2.12.1.drv
~a" item (random-base32 52) size item extra))

(define (digest text) (sha256 (string->utf8 text)))

(define* (assemble head field #:optional (tail tail))
  (string-append head "Signature: " field "\n" tail))

(define* (signed head #:key (key A) (tail tail))
  (assemble head (signature-field key (digest head)) tail))

(define (signed-such-that wanted?)
  "Return a signed narinfo with a signature whose text satisfies WANTED?."
  (let* ((head (signed-part)))
    (call-with-values (lambda () (signature-field A (digest head)))
      (lambda (field text)
        (if (wanted? text) (assemble head field) (signed-such-that wanted?))))))

(define (replace text from to)
  (let ((index (string-contains text from)))
    (unless index (error "nothing to replace" from text))
    (string-append (string-take text index) to
                   (string-drop text (+ index (string-length from))))))

(define base (signed-part))
(define-values (base-field base-text) (signature-field A (digest base)))
(define (with-text text) (assemble base (encode-field text)))
(define (with-change from to) (with-text (replace base-text from to)))
(define (number-of name)
  (let* ((start (+ (string-contains base-text (string-append "(" name " #")) 4)))
    (substring base-text start (string-index base-text #\# start))))
(define (hex-change name change)
  (with-change (number-of name) (change (number-of name))))
(define order "1000000000000000000000000000000014DEF9DEA2F79CD65812631A5CF5D3ED")
(define (flip-last-digit hex)
  (string-append (string-drop-right hex 1) (if (string-suffix? "0" hex) "1" "0")))

(define valid
  `(("new-style" ,(signed base))
    ("three-compressions"
     ,(signed (signed-part)
              #:tail "URL: a\nCompression: gzip\nFileSize: 3\nURL: b\nCompression: lzip\nFileSize: 2\nURL: c\nCompression: zstd\nFileSize: 4\n"))
    ("old-style-signs-its-url"
     ,(signed (signed-part #:extra "URL: nar/gzip/x\nCompression: gzip\nFileSize: 61822\n") #:tail ""))
    ("no-line-end-at-the-end" ,(string-drop-right (signed (signed-part)) 1))
    ("empty-line-at-the-end" ,(string-append (signed (signed-part)) "\n"))
    ("comment-line" ,(signed (signed-part #:extra "# a comment\n")))
    ("unknown-unsigned-field" ,(string-append (signed (signed-part)) "Foo: bar\n"))
    ("signed-by-B" ,(signed (signed-part) #:key B))
    ("short-r" ,(signed-such-that (lambda (t) (string-match "\\(r #[0-9A-F]{60,62}#" t))))
    ("shorter-r" ,(signed-such-that (lambda (t) (string-match "\\(r #[0-9A-F]{60}#" t))))
    ("short-s" ,(signed-such-that (lambda (t) (string-match "\\(s #[0-9A-F]{60,62}#" t))))
    ("quoted-r" ,(signed-such-that (lambda (t) (string-contains t "(r \""))))
    ("quoted-s" ,(signed-such-that (lambda (t) (string-contains t "(s \""))))
    ("quoted-hash" ,(signed-such-that (lambda (t) (string-contains t "(hash sha256 \""))))))

(define hostile
  `(("size-changed" ,(assemble (replace base "NarSize: 3" "NarSize: 4") base-field))
    ("reference-dropped" ,(assemble (replace base "References: 0c3" "References: 0c4") base-field))
    ("field-added-above" ,(assemble (string-append base "Foo: bar\n") base-field))
    ("size-not-signed" ,(let ((head (replace base "NarSize: 329287\n" "")))
                          (signed head #:tail (string-append "NarSize: 329287\n" tail))) "refuse")
    ("hash-not-signed" ,(let ((head (replace base "NarHash" "X")))
                          (signed head #:tail (string-append "NarHash: sha256:" (random-base32 52) "\n" tail))))
    ("carriage-returns" ,(string-join (string-split (signed base) #\newline) "\r\n"))
    ("empty-line-above" ,(assemble (string-append base "\n") base-field))
    ("empty-line-below" ,(assemble base base-field (string-append "\n" tail)))
    ("no-tail" ,(assemble base base-field ""))
    ("unsigned" ,(string-append base tail))
    ("signature-word-in-a-field" ,(assemble (replace base "System:" "X: Signature: y\nSystem:") base-field))
    ("bad-signature-first"
     ,(assemble base "1;synthetic.example;AAAA" (string-append "Signature: " base-field "\n" tail)))
    ("good-signature-first"
     ,(assemble base base-field (string-append "Signature: 1;synthetic.example;AAAA\n" tail)))
    ("not-a-field" ,(string-append (signed base) "nonsense\n"))
    ("version-2" ,(assemble base (replace base-field "1;" "2;")))
    ("version-1.0" ,(assemble base (replace base-field "1;" "1.0;")) "may")
    ("fourth-part" ,(assemble base (string-append base-field ";")))
    ("base64-cut" ,(assemble base (string-drop-right base-field 1)))
    ("stranger" ,(signed base #:key stranger))
    ("strangers-signature-in-our-name"
     ,(let-values (((field text) (signature-field stranger (digest base))))
        (with-text (string-append (string-take text (string-contains text "(public-key"))
                                  (sexp-text (key-part A 'public-key)) ")"))))
    ("sexp-cut" ,(with-text (string-drop-right base-text 6)))
    ("sexp-followed" ,(with-text (string-append base-text "(x)")) "may")
    ("without-data" ,(with-change "(data" "(date"))
    ("without-key" ,(with-change "(public-key" "(pubic-key"))
    ("without-values" ,(with-change "(sig-val" "(sig-var"))
    ("without-flags" ,(with-change "(flags rfc6979)" ""))
    ("flags-eddsa" ,(with-change "rfc6979" "eddsa"))
    ("flags-unknown" ,(with-change "rfc6979" "rfc6980"))
    ("flags-raw-too" ,(with-change "rfc6979" "raw rfc6979"))
    ("flags-raw" ,(with-change "rfc6979" "raw"))
    ("hash-label-upper-case" ,(with-change "(hash sha256" "(hash SHA256"))
    ("values-eddsa" ,(with-change "(ecdsa" "(eddsa"))
    ("values-without-s" ,(with-change "(s #" "(t #"))
    ("hash-label-unknown" ,(with-change "(hash sha256" "(hash sha257"))
    ("hash-with-a-third" ,(with-text (replace base-text "#)" "# x)")))
    ("value-beside-hash" ,(with-change "(flags rfc6979)" "(flags rfc6979)(value #00#)") "may")
    ("curve-lower-case" ,(with-change "curve Ed25519" "curve ed25519"))
    ("lower-case-digits" ,(hex-change "r" string-downcase))
    ("r-padded" ,(hex-change "r" (lambda (r) (string-append "000000" r))))
    ("r-changed" ,(hex-change "r" flip-last-digit))
    ("s-changed" ,(hex-change "s" flip-last-digit))
    ("r-empty" ,(hex-change "r" (const "")))
    ("r-zero" ,(hex-change "r" (const "00")))
    ("s-is-the-order" ,(hex-change "s" (const order)))
    ("r-plus-the-order"
     ,(hex-change "r" (lambda (r)
                        (format #f "~:@(~64,'0x~)" (+ (string->number r 16) (string->number order 16))))))
    ("s-negated"
     ,(hex-change "s" (lambda (s)
                        (format #f "~:@(~64,'0x~)" (- (string->number order 16) (string->number s 16))))))
    ("odd-digits" ,(hex-change "r" (lambda (r) (string-drop r 1))))
    ("of-another-text" ,(assemble base (signature-field A (digest "another"))))))

(define (write-file name text)
  (call-with-output-file name
    (lambda (port)
      (set-port-encoding! port "UTF-8")
      (put-string port text))))

(define (write-key name pair)
  (write-file name (sexp-text (key-part pair 'public-key))))

(for-each (lambda (directory)
            (unless (file-exists? directory) (mkdir directory)))
          '("valid" "hostile"))
(write-key "A.pub" A)
(write-key "B.pub" B)
(call-with-output-file "EXPECTED.tsv"
  (lambda (port)
    (format port "file\trequired\tverdict~%")
    (define (record directory)
      (match-lambda
        ((name text required ...)
         (let ((file (string-append directory "/" name ".narinfo"))
               (verdict (narinfo-verdict text acl)))
           (write-file file text)
           (format port "~a\t~a\t~a~%" file
                   (match required
                     ((required) required)
                     (() (if (eq? verdict 'valid-signature) "accept" "refuse")))
                   verdict)))))
    (for-each (record "valid") valid)
    (for-each (record "hostile") hostile)))
