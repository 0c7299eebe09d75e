//! Sources of entry nodes that a program can't be told of from outside.

use super::*;
use crate::net::testing::{TestResponder, node, wait_until};
use libp2p::PeerId;

fn config(built_in: BuiltIn) -> EntryConfig {
    EntryConfig {
        built_in,
        bootstrap: Vec::new(),
        dnsaddr: Vec::new(),
        resolver: None,
        lists: Vec::new(),
        keys: Vec::new(),
        cache: PathBuf::new(),
    }
}

fn for_ever(text: String) -> &'static str {
    Box::leak(text.into_boxed_str())
}

#[tokio::test]
async fn what_comes_with_the_program_suffices() {
    let (a, _events) = node(TestResponder::default(), Vec::new()).await;
    let (b, _events) = node(TestResponder::default(), Vec::new()).await;
    let dead = for_ever(format!("/ip4/127.0.0.1/tcp/1/p2p/{}", PeerId::random()));
    let good = for_ever(a.listen_addresses()[0].to_string());
    let addresses = Box::leak(Box::new([dead, "nonsense", good]));
    let entry = Entry::new(config(BuiltIn { addresses, names: &[] }), b.clone());
    tokio::spawn(entry.clone().run());
    wait_until("B to be in", || !b.connected().is_empty()).await;
    let reports = entry.report().await;
    let report = reports.iter().find(|report| report.kind == SourceKind::BuiltIn);
    let report = report.expect("it is followed");
    assert_eq!((report.addresses, report.connected, report.reached), (2, 1, true), "{report:?}");
}

#[test]
fn addresses_have_to_name_their_peer_or_a_name() {
    let peer = PeerId::random();
    let texts = [
        format!("/ip4/192.0.2.1/tcp/1/p2p/{peer}"),
        "/dnsaddr/entry.example.org".to_owned(),
        "/ip4/192.0.2.1/tcp/1".to_owned(),
        String::new(),
        "\u{0}".to_owned(),
    ];
    let offer = Offer::from_texts(texts);
    assert_eq!((offer.addresses.len(), offer.passed_over), (2, 3));
}
