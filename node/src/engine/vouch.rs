//! Vouchers for piece lists: whose word is believed, what is passed on, and this node's own word.
//!
//! A root for which somebody believed vouches needs no second opinion, so a nar reaches guix as it
//! comes from the first peer on. Whoever vouched for a root that led to another nar is believed no
//! more until the node restarts with him in its configuration, or an hour has passed.

use moka::sync::Cache;
use narswarm_protocol::hash::{NarHash, Root};
use narswarm_protocol::limits::{BAN_LIFE, HOLDER_LIFE, MAX_REMEMBERED_VOUCHERS, MAX_VOUCHERS};
use narswarm_protocol::voucher::{Voucher, VoucherKey, VoucherSigner};
use std::sync::Arc;

/// Valid vouchers of one nar, and the root that each is for.
type Vouched = Arc<Vec<(Root, Voucher)>>;

/// See the module.
#[derive(Debug)]
pub(super) struct Vouching {
    signer: VoucherSigner,
    believed: Vec<VoucherKey>,
    /// Those who vouched for what turned out false.
    liars: Cache<VoucherKey, ()>,
    /// What others have said, to be passed on.
    heard: Cache<NarHash, Vouched>,
}

impl Vouching {
    /// Signs with `signer`, and believes those whom the user named.
    pub fn new(signer: VoucherSigner, believed: Vec<VoucherKey>) -> Self {
        Self {
            signer,
            believed,
            liars: Cache::builder()
                .max_capacity(MAX_REMEMBERED_VOUCHERS)
                .time_to_live(BAN_LIFE)
                .build(),
            heard: Cache::builder()
                .max_capacity(MAX_REMEMBERED_VOUCHERS)
                .time_to_live(HOLDER_LIFE)
                .build(),
        }
    }

    /// Takes note of what came with a piece list: says whether somebody believed vouches for it,
    /// and how many of the vouchers nobody has made.
    pub fn heed(&self, nar: &NarHash, root: Root, vouchers: &[Voucher]) -> Heeded {
        let mut heeded = Heeded::default();
        let mut heard = self.heard.get(nar).unwrap_or_default();
        for voucher in vouchers.iter().take(MAX_VOUCHERS) {
            let is_known = heard.contains(&(root, *voucher));
            if !is_known && !voucher.is_valid(nar, &root) {
                heeded.invalid += 1;
                continue;
            }
            let is_believed = self.is_believed(&voucher.key());
            heeded.is_vouched |= is_believed;
            if is_known || voucher.key() == self.signer.key() {
                continue;
            }
            let heard = Arc::make_mut(&mut heard);
            if heard.len() < MAX_VOUCHERS {
                heard.push((root, *voucher));
            } else if is_believed
                && let Some(other) = heard.iter_mut().find(|(_, v)| !self.is_believed(&v.key()))
            {
                *other = (root, *voucher);
            }
        }
        if !heard.is_empty() {
            self.heard.insert(*nar, heard);
        }
        heeded
    }

    /// What goes to others with a piece list; this node's own word too if it has hashed the
    /// `whole` nar.
    pub fn given(&self, nar: &NarHash, root: Root, whole: bool) -> Vec<Voucher> {
        let own = whole.then(|| self.signer.vouch(nar, &root));
        let heard = self.heard.get(nar).unwrap_or_default();
        let others =
            heard.iter().filter(|(theirs, _)| *theirs == root).map(|(_, voucher)| *voucher);
        own.into_iter().chain(others).take(MAX_VOUCHERS).collect()
    }

    /// A root led to another nar: who vouched for it is believed no more. Returns those who were.
    pub fn condemn(&self, nar: &NarHash, root: Root) -> Vec<VoucherKey> {
        let heard = self.heard.remove(nar).unwrap_or_default();
        let false_ones = heard.iter().filter(|(theirs, _)| *theirs == root);
        let keys: Vec<_> =
            false_ones.map(|(_, v)| v.key()).filter(|key| self.is_believed(key)).collect();
        for key in &keys {
            self.liars.insert(*key, ());
        }
        keys
    }

    fn is_believed(&self, key: &VoucherKey) -> bool {
        self.believed.contains(key) && !self.liars.contains_key(key)
    }
}

/// What became of the vouchers that came with a piece list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Heeded {
    /// Whether somebody believed vouches for it.
    pub is_vouched: bool,
    /// Vouchers whose signature is wrong.
    pub invalid: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAR: NarHash = NarHash([1; 32]);
    const ROOT: Root = Root([2; 32]);
    const LIE: Root = Root([3; 32]);

    fn signer(seed: u8) -> VoucherSigner {
        VoucherSigner::new(&[seed; 32])
    }

    fn believing(believed: &[&VoucherSigner]) -> Vouching {
        Vouching::new(signer(0), believed.iter().map(|signer| signer.key()).collect())
    }

    #[test]
    fn only_those_whom_the_user_named_are_believed() {
        let (seed, stranger) = (signer(1), signer(2));
        let vouching = believing(&[&seed]);
        let heeded = vouching.heed(&NAR, ROOT, &[stranger.vouch(&NAR, &ROOT)]);
        assert_eq!(heeded, Heeded { is_vouched: false, invalid: 0 });
        let heeded = vouching.heed(&NAR, ROOT, &[seed.vouch(&NAR, &ROOT)]);
        assert_eq!(heeded, Heeded { is_vouched: true, invalid: 0 });
        let heeded = vouching.heed(&NAR, LIE, &[seed.vouch(&NAR, &ROOT)]);
        assert_eq!(heeded, Heeded { is_vouched: false, invalid: 1 });
    }

    #[test]
    fn what_was_heard_is_passed_on_and_the_own_word_only_for_the_whole() {
        let (seed, stranger) = (signer(1), signer(2));
        let vouching = believing(&[&seed]);
        let words = [stranger.vouch(&NAR, &ROOT), seed.vouch(&NAR, &ROOT)];
        vouching.heed(&NAR, ROOT, &words);
        assert_eq!(vouching.given(&NAR, ROOT, false), words);
        assert_eq!(vouching.given(&NAR, LIE, false), []);
        let whole = vouching.given(&NAR, ROOT, true);
        assert_eq!(whole.len(), 3);
        assert!(whole[0].key() == signer(0).key() && whole[0].is_valid(&NAR, &ROOT));
    }

    #[test]
    fn strangers_cannot_crowd_out_who_is_believed() {
        let seed = signer(1);
        let vouching = believing(&[&seed]);
        let strangers: Vec<_> = (10..20).map(|n| signer(n).vouch(&NAR, &ROOT)).collect();
        strangers.chunks(2).for_each(|some| {
            vouching.heed(&NAR, ROOT, some);
        });
        vouching.heed(&NAR, ROOT, &[seed.vouch(&NAR, &ROOT)]);
        let given = vouching.given(&NAR, ROOT, false);
        assert_eq!(given.len(), MAX_VOUCHERS);
        assert!(given.iter().any(|voucher| voucher.key() == seed.key()));
    }

    #[test]
    fn who_vouched_for_a_lie_is_believed_no_more() {
        let seed = signer(1);
        let vouching = believing(&[&seed]);
        assert!(vouching.heed(&NAR, LIE, &[seed.vouch(&NAR, &LIE)]).is_vouched);
        assert_eq!(vouching.condemn(&NAR, ROOT), []);
        vouching.heed(&NAR, LIE, &[seed.vouch(&NAR, &LIE)]);
        assert_eq!(vouching.condemn(&NAR, LIE), [seed.key()]);
        assert!(!vouching.heed(&NAR, ROOT, &[seed.vouch(&NAR, &ROOT)]).is_vouched);
    }
}
