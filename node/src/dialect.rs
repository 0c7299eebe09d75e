//! Guix or Nix: what is where by default on a machine with one or the other.
//!
//! The store tells which it is, and everything here can be set otherwise. How narinfos are signed is
//! not decided here: they say that themselves (`narswarm_protocol::narinfo`).

use narswarm_protocol::acl::Acl;
use std::fmt;
use std::path::Path;

/// Whose machine it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// A machine with Guix, or with neither.
    Guix,
    /// A machine with Nix.
    Nix,
}

impl fmt::Display for Dialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Guix => "Guix",
            Self::Nix => "Nix",
        })
    }
}

impl Dialect {
    /// Nix's if the store is Nix's, else Guix's.
    #[must_use]
    pub fn of_store(store: &Path) -> Self {
        if store == Path::new("/nix/store") { Self::Nix } else { Self::Guix }
    }

    /// Substitute servers to fall back on, in order.
    #[must_use]
    pub fn upstreams(self) -> &'static [&'static str] {
        match self {
            Self::Guix => &["https://bordeaux.guix.gnu.org", "https://ci.guix.gnu.org"],
            Self::Nix => &["https://cache.nixos.org"],
        }
    }

    /// The file that says which keys the machine's administrator trusts (`guix/pki.scm`,
    /// `%acl-file`; `nix.conf(5)`).
    #[must_use]
    pub fn keys_file(self) -> &'static Path {
        Path::new(match self {
            Self::Guix => "/etc/guix/acl",
            Self::Nix => "/etc/nix/nix.conf",
        })
    }

    /// The store's database (`guix/config.scm`, `%store-database-directory`).
    #[must_use]
    pub fn store_database(self) -> &'static Path {
        Path::new(match self {
            Self::Guix => "/var/guix/db/db.sqlite",
            Self::Nix => "/nix/var/nix/db/db.sqlite",
        })
    }

    /// The keys that Guix or Nix comes with.
    #[must_use]
    pub fn built_in_keys(self) -> Acl {
        match self {
            Self::Guix => Acl::guix_build_farms(),
            Self::Nix => Acl::nixos_cache(),
        }
    }

    /// What the administrator's file says before its first line: nothing in Guix; in Nix the
    /// built-in key, which a setting replaces and an `extra-` one adds to.
    #[must_use]
    pub fn implied_keys(self) -> String {
        match self {
            Self::Guix => String::new(),
            Self::Nix => {
                let keys: Vec<_> = Acl::nixos_cache().nix_keys().map(ToString::to_string).collect();
                format!("trusted-public-keys = {}\n", keys.join(" "))
            }
        }
    }
}
