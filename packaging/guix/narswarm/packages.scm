;;; narswarm as a package, from the checkout that this file is in:
;;;
;;;   guix build -L packaging/guix narswarm

(define-module (narswarm packages)
  #:use-module (gnu packages)
  #:use-module (gnu packages cmake)
  #:use-module (gnu packages perl)
  #:use-module (guix build-system cargo)
  #:use-module (guix gexp)
  #:use-module (guix git-download)
  #:use-module (guix import crate)
  #:use-module ((guix licenses) #:prefix license:)
  #:use-module (guix packages)
  #:use-module (guix utils)
  #:export (narswarm))

(define %checkout
  (canonicalize-path (string-append (current-source-directory) "/../../..")))

(define narswarm
  (package
    (name "narswarm")
    (version "0.1.0")
    (source
     (local-file %checkout "narswarm-checkout"
                 #:recursive? #t
                 #:select? (or (git-predicate %checkout) (const #t))))
    (build-system cargo-build-system)
    (arguments
     (list
      #:install-source? #f
      #:rust (specification->package "rust@1.95")
      ;; Most tests need sockets, other programs and minutes: they belong to CI.
      #:cargo-test-flags ''("--package" "narswarm-protocol" "--lib")
      #:cargo-install-paths ''("node")
      #:phases
      #~(modify-phases %standard-phases
          (add-after 'install 'install-documentation
            (lambda _
              (let ((doc (string-append #$output "/share/doc/narswarm")))
                (for-each (lambda (file) (install-file file doc))
                          '("README.md" "CHANGELOG.md" "packaging/config.toml"))
                (copy-recursively "docs" (string-append doc "/docs"))))))))
    ;; For aws-lc, which is built from its crate.
    (native-inputs (list cmake-minimal perl))
    ;; With the hashes that Cargo.lock has, so that there is no second list to go stale.
    (inputs (cargo-inputs-from-lockfile (string-append %checkout "/Cargo.lock")))
    (home-page "https://guix.gnu.org")
    (synopsis "Peer-to-peer substitutes for Guix and Nix")
    (description
     "Narswarm gives and takes substitutes from peer to peer.  It presents itself to
@command{guix} as an ordinary substitute server, finds what is asked for at peers and at the
build farms, passes on only what an authorized key has signed, and shares what it has.")
    (license license:gpl3+)))
