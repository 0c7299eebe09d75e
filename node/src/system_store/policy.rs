//! What of the store the user lets others know.

use super::error::SystemStoreError;
use globset::{Glob, GlobSet, GlobSetBuilder};
use narswarm_protocol::store_path::ItemName;

/// Which items may be shared, by their names.
#[derive(Debug, Clone)]
pub struct Policy {
    include: Option<GlobSet>,
    exclude: GlobSet,
}

impl Policy {
    /// Shares items of which a name matches one of `include`, any if that is empty, and none of
    /// `exclude`. A pattern is tried on the name, `hello-2.12.1`, and on the whole,
    /// `HASH-hello-2.12.1`.
    ///
    /// # Errors
    /// [`SystemStoreError::Pattern`].
    pub fn new(include: &[String], exclude: &[String]) -> Result<Self, SystemStoreError> {
        let include = if include.is_empty() { None } else { Some(patterns(include)?) };
        Ok(Self { include, exclude: patterns(exclude)? })
    }

    /// Whether there are names that others may never know.
    #[must_use]
    pub fn excludes_some(&self) -> bool {
        !self.exclude.is_empty()
    }

    /// Whether an item that is in the cache may be given to others: all but what is excluded.
    #[must_use]
    pub fn allows_cached(&self, item: &ItemName) -> bool {
        !matches(&self.exclude, item)
    }

    /// Whether the item may be shared, as far as its name says.
    #[must_use]
    pub fn allows(&self, item: &ItemName) -> bool {
        self.include.as_ref().is_none_or(|set| matches(set, item)) && self.allows_cached(item)
    }
}

fn matches(set: &GlobSet, item: &ItemName) -> bool {
    set.is_match(item.name()) || set.is_match(item.as_str())
}

fn patterns(patterns: &[String]) -> Result<GlobSet, SystemStoreError> {
    let failed =
        |pattern: &str, source| SystemStoreError::Pattern { pattern: pattern.into(), source };
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        set.add(Glob::new(pattern).map_err(|source| failed(pattern, source))?);
    }
    set.build().map_err(|source| failed("all together", source))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(name: &str) -> ItemName {
        let text = format!("zab5qqb146vi73jmxl23i3ygcy7lsrps-{name}");
        ItemName::parse(text.as_bytes()).expect("a name")
    }

    fn policy(include: &[&str], exclude: &[&str]) -> Policy {
        let owned =
            |patterns: &[&str]| patterns.iter().map(ToString::to_string).collect::<Vec<_>>();
        Policy::new(&owned(include), &owned(exclude)).expect("patterns")
    }

    #[test]
    fn exclusion_wins_and_nothing_included_means_all() {
        assert!(policy(&[], &[]).allows(&item("hello-2.12")));
        assert!(!policy(&["a"], &[]).excludes_some() && policy(&[], &["a"]).excludes_some());
        let policy = policy(&["hello-*", "zab5*-bash-5"], &["*-debug"]);
        assert!(policy.allows(&item("hello-2.12")));
        assert!(policy.allows(&item("bash-5")));
        assert!(!policy.allows(&item("hello-2.12-debug")));
        assert!(!policy.allows(&item("emacs-30")));
    }

    #[test]
    fn a_malformed_pattern_is_named() {
        let error = Policy::new(&[], &["a[".to_owned()]).expect_err("malformed");
        assert!(error.to_string().contains("\"a[\""), "{error}");
    }
}
