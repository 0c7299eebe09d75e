//! In the making.

/// The keys whose signatures are believed.
#[derive(Debug, Clone, Default)]
pub struct Acl {}
