;;; narswarm as a service of Guix System, run by the Shepherd.
;;;
;;;   (use-modules (narswarm services))
;;;   (operating-system
;;;     …
;;;     (services (cons (service narswarm-service-type) %desktop-services)))
;;;
;;; It runs as a user of its own, who owns nothing but its data, and puts its substitute URL before
;;; those that guix-daemon asks already. There is no key to authorise.

(define-module (narswarm services)
  #:use-module (gnu packages admin)
  #:use-module (gnu services)
  #:use-module (gnu services base)
  #:use-module (gnu services configuration)
  #:use-module (gnu services shepherd)
  #:use-module (gnu system shadow)
  #:use-module (guix gexp)
  #:use-module (guix records)
  #:use-module (narswarm packages)
  #:export (narswarm-configuration
            narswarm-configuration?
            narswarm-configuration-narswarm
            narswarm-configuration-config-file
            narswarm-configuration-data-directory
            narswarm-configuration-port
            narswarm-configuration-extra-options
            narswarm-service-type))

(define list-of-strings?
  (list-of string?))

(define (config-file? value)
  (or (not value) (file-like? value)))

(define-configuration/no-serialization narswarm-configuration
  (narswarm
   (file-like narswarm)
   "The narswarm package to use.")
  (config-file
   (config-file #f)
   "A file-like object with settings, as @file{packaging/config.toml} shows them, or @code{#f}.")
  (data-directory
   (string "/var/lib/narswarm")
   "Where the node keeps its key, index and nars.")
  (port
   (integer 8710)
   "The port of the substitute URL, on the loopback.")
  (extra-options
   (list-of-strings '())
   "More options of @command{narswarm run}."))

(define %narswarm-accounts
  (list (user-group (name "narswarm") (system? #t))
        (user-account
         (name "narswarm")
         (group "narswarm")
         (system? #t)
         (comment "narswarm peer-to-peer substitutes")
         (home-directory "/var/empty")
         (shell (file-append shadow "/sbin/nologin")))))

(define (narswarm-activation config)
  "Make the data directory, which belongs to the service's user."
  (match-record config <narswarm-configuration> (data-directory)
    #~(begin
        (use-modules (guix build utils))
        (let ((user (getpwnam "narswarm")))
          (mkdir-p #$data-directory)
          (chown #$data-directory (passwd:uid user) (passwd:gid user))
          (chmod #$data-directory #o750)))))

(define (narswarm-shepherd-services config)
  (match-record config <narswarm-configuration>
      (narswarm config-file data-directory port extra-options)
    (list (shepherd-service
           (documentation "Give and take substitutes from peer to peer.")
           (provision '(narswarm))
           (requirement '(user-processes networking))
           (actions
            (list (shepherd-action
                   (name 'reload)
                   (documentation "Read the files with the keys anew.")
                   (procedure
                    #~(lambda (running . _)
                        (kill (if (integer? running) running (process-id running)) SIGHUP)
                        #t)))))
           (start
            #~(make-forkexec-constructor
               (list #$(file-append narswarm "/bin/narswarm") "run"
                     "--data-dir" #$data-directory
                     "--http" (string-append "127.0.0.1:" (number->string #$port))
                     #$@(if config-file
                            #~("--config" #$config-file)
                            #~())
                     #$@extra-options)
               #:user "narswarm"
               #:group "narswarm"
               #:directory #$data-directory
               #:log-file "/var/log/narswarm.log"
               #:resource-limits '((nofile 65536 65536))))
           (stop #~(make-kill-destructor #:grace-period 20))))))

(define (narswarm-guix-extension config)
  "Have guix-daemon ask the node before the build farms."
  (guix-extension
   (substitute-urls
    (list (string-append "http://127.0.0.1:"
                         (number->string (narswarm-configuration-port config)))))))

(define narswarm-service-type
  (service-type
   (name 'narswarm)
   (extensions
    (list (service-extension account-service-type (const %narswarm-accounts))
          (service-extension activation-service-type narswarm-activation)
          (service-extension shepherd-root-service-type narswarm-shepherd-services)
          (service-extension guix-service-type narswarm-guix-extension)))
   (default-value (narswarm-configuration))
   (description
    "Run @command{narswarm}, which gives and takes substitutes from peer to peer, and have
@command{guix} ask it first.")))
