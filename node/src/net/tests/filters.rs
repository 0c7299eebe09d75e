//! Filters of seeds over real sockets: whole, changes, none, and from those who lie about them.

use super::super::Net;
use super::super::error::PeerError;
use super::super::responder::{FilterAnswer, FilterContent, Held, Responder, ServedNar};
use super::super::testing::{RawPeer, TestResponder, loopback, node, soon};
use crate::net::streams::Protocol;
use futures::AsyncWriteExt;
use libp2p::PeerId;
use narswarm_protocol::filter::publisher::{Content, Publisher};
use narswarm_protocol::filter::{Filter, SignedHead};
use narswarm_protocol::hash::NarHash;
use narswarm_protocol::store_path::StoreHash;
use narswarm_protocol::voucher::VoucherSigner;
use narswarm_protocol::wire::Message;
use narswarm_protocol::wire::filter::{FilterReply, FilterRequest, Following};
use parking_lot::Mutex;
use std::sync::Arc;

const ALL: FilterRequest = FilterRequest { have: None, head_only: false };

/// A seed of made-up items.
struct Seed(Arc<Mutex<Publisher>>);

fn signer() -> VoucherSigner {
    VoucherSigner::new(&[5; 32])
}

impl Responder for Seed {
    fn query(&self, hashes: &[StoreHash]) -> Vec<Option<Held>> {
        vec![None; hashes.len()]
    }

    fn filter(&self, have: Option<(u64, u32)>) -> Option<FilterAnswer> {
        let publisher = self.0.lock();
        let content = match publisher.content(have) {
            Content::Same => FilterContent::Nothing,
            Content::Changes(octets) => FilterContent::Changes(octets.into()),
            Content::Whole => {
                FilterContent::Whole(publisher.filter().octets().as_ref().clone().into())
            }
        };
        Some(FilterAnswer { head: publisher.head(&signer()), content })
    }

    fn open(&self, _: PeerId, _: &NarHash) -> Option<Arc<dyn ServedNar>> {
        None
    }
}

/// Numbers that are as spread out as keys.
fn leading(count: u32) -> Vec<u32> {
    (0..count).map(|number| number.wrapping_mul(0x9e37_79b1)).collect()
}

async fn seed_and_asker(items: u32) -> (Arc<Mutex<Publisher>>, Net, Net) {
    let publisher = Arc::new(Mutex::new(Publisher::new(1, &mut leading(items))));
    let seed = Net::start(loopback(), Arc::new(Seed(publisher.clone()))).await.expect("a port").0;
    let asker = node(TestResponder::default(), seed.listen_addresses()).await.0;
    (publisher, seed, asker)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_filter_is_given_whole_once_and_then_what_has_changed() {
    // So many that it takes several frames.
    let (publisher, seed, asker) = seed_and_asker(500_000).await;
    let head_only = FilterRequest { have: None, head_only: true };
    let answer = asker.filter(seed.peer_id(), head_only, false).await.expect("a head");
    assert_eq!(answer.content, FilterContent::Nothing);
    let refused = asker.filter(seed.peer_id(), ALL, false).await;
    assert!(
        matches!(refused, Err(PeerError::Local { .. })),
        "the whole wasn't wanted: {refused:?}"
    );

    // Another asker, as that one has had it.
    let asker = node(TestResponder::default(), seed.listen_addresses()).await.0;
    let answer = asker.filter(seed.peer_id(), ALL, true).await.expect("a filter");
    let head = answer.head.verify(&signer().key().0).expect("it is signed");
    let FilterContent::Whole(octets) = answer.content else { panic!("it has none yet") };
    assert!(octets.len() > 400_000, "{} octets", octets.len());
    head.check(&octets).expect("it is the one");
    let filter = Filter::from_octets(head.shape, octets.into()).expect("well made");
    assert_eq!(filter.items(), head.items);
    let again = asker.filter(seed.peer_id(), ALL, true).await;
    assert!(matches!(again, Err(PeerError::Closed { .. })), "not twice at once: {again:?}");

    let have = FilterRequest { have: Some((head.series, head.generation)), head_only: false };
    let same = asker.filter(seed.peer_id(), have, true).await.expect("nothing new");
    assert_eq!(same.content, FilterContent::Nothing);
    assert!(publisher.lock().rebuild(2, &mut leading(499_990)));
    let news = asker.filter(seed.peer_id(), have, true).await.expect("something new");
    let FilterContent::Changes(changes) = news.content else { panic!("little has changed") };
    assert!(changes.len() < 50, "{} octets", changes.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_no_seed_has_no_filter() {
    let other = node(TestResponder::default(), vec![]).await.0;
    let asker = node(TestResponder::default(), other.listen_addresses()).await.0;
    let refused = asker.filter(other.peer_id(), ALL, true).await;
    assert!(matches!(refused, Err(PeerError::Closed { .. })), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_filter_that_is_longer_than_it_said_or_has_no_head_is_a_fault() {
    let mut liar = RawPeer::start().await;
    let asker = node(TestResponder::default(), vec![]).await.0;
    asker.learn(liar.peer, [liar.address.clone()]);
    let publisher = Publisher::new(1, &mut leading(10));
    let head: SignedHead = publisher.head(&signer());
    let whole = |octets| FilterReply::Head { head, following: Following::Whole(octets) };
    let chunk = |octets| FilterReply::Chunk(vec![0; octets]);
    let lies = [vec![whole(10), chunk(11)], vec![chunk(10)], vec![whole(10), whole(10)]];
    for lie in lies {
        let (net, peer) = (asker.clone(), liar.peer);
        let asking = tokio::spawn(async move { net.filter(peer, ALL, true).await });
        let (protocol, mut stream) = liar.accept().await;
        assert_eq!(protocol, Protocol::Filter);
        let request: FilterRequest = RawPeer::receive(&mut stream).await;
        assert_eq!(request, ALL);
        let mut octets = Vec::new();
        lie.iter().for_each(|message| message.encode(&mut octets));
        stream.write_all(&octets).await.expect("written");
        stream.flush().await.expect("flushed");
        let asked = soon("an end", asking).await.expect("no panic");
        assert!(matches!(asked, Err(PeerError::Violation { .. })), "{asked:?}");
    }
}
