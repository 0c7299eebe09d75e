//! Golden octets, round trips, and what hostile octets come to.

use super::announce::{AnnounceReply, AnnounceRequest, NamedPeer};
use super::fetch::{Encoding, FetchReply, FetchRequest, Opened, PieceHead, RefusedReason};
use super::query::{Answer, QueryRequest, QueryResponse};
use super::{HEADER_BYTES, Message, WireError};
use crate::announce::{Bucket, ItemKey, Share};
use crate::hash::{NarHash, PieceHash, Root};
use crate::limits::{MAX_HAVE_RANGES, MAX_NARINFO_BYTES, MAX_PIECES, MAX_QUERY_HASHES};
use crate::piece::{PieceLayout, PieceList};
use crate::piece_set::PieceSet;
use crate::store_path::StoreHash;
use crate::voucher::Voucher;
use proptest::prelude::*;
use serde_bytes::ByteBuf;
use std::fmt::Debug;
use std::time::Duration;

fn frame<M: Message>(message: &M) -> Vec<u8> {
    let mut out = Vec::new();
    message.encode(&mut out);
    out
}

fn read<M: Message>(octets: &[u8]) -> Result<M, WireError> {
    let (head, body) = octets.split_first_chunk::<HEADER_BYTES>().expect("a header");
    let header = M::header(*head)?;
    assert_eq!(header.body_len, body.len());
    M::decode(header.kind, body)
}

fn hex(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect()
}

#[track_caller]
fn golden<M: Message + PartialEq + Debug>(message: &M, expected: &str) {
    let octets = frame(message);
    assert_eq!(hex(&octets), expected);
    assert_eq!(read::<M>(&octets).as_ref(), Ok(message));
}

fn opened(nar_size: u64, held: impl FnOnce(u32) -> PieceSet) -> FetchReply {
    let layout = PieceLayout::new(nar_size).expect("within the limit");
    let hashes = (0..layout.piece_count()).map(|i| PieceHash([i as u8; 32])).collect();
    let list = PieceList::new(layout, hashes).expect("as many as pieces");
    let held = held(layout.piece_count());
    FetchReply::Opened(Opened { slot: 1, root: Root([9; 32]), list, held, vouchers: Vec::new() })
}

#[test]
fn the_octets_of_queries_stay() {
    golden(
        &QueryRequest { hashes: vec![StoreHash([1; 20])] },
        "0000001901a16168540101010101010101010101010101010101010101",
    );
    let answer = Answer { index: 3, narinfo: b"hi".to_vec(), root: None, pieces_held: 2 };
    let with_root = Answer { root: Some(Root([2; 32])), index: 4, ..answer.clone() };
    let response =
        QueryResponse { answers: vec![answer, with_root], last: true, ask_again_from: Some(5) };
    golden(
        &response,
        concat!(
            "0000004702a3616182a3616903616e426869617002a4616904616e42686961725820020202020202",
            "0202020202020202020202020202020202020202020202020202617002616cf5616d05",
        ),
    );
    golden(&QueryResponse::default(), "0000000502a1616180");
}

#[test]
fn the_octets_of_fetch_requests_stay() {
    let nar_hash = NarHash([3; 32]);
    golden(
        &FetchRequest::Open { slot: 1, nar_hash, nar_size: 1 << 20, first: 0, count: 4 },
        concat!(
            "0000003601a561730161685820030303030303030303030303030303030303030303030303030303",
            "0303030303617a1a00100000616600616304",
        ),
    );
    golden(
        &FetchRequest::Want { slot: 1, first: 4, count: 1000 },
        "0000000d02a361730161660461631903e8",
    );
    golden(&FetchRequest::Cancel { slot: 1, first: 4, count: 1 }, "0000000b03a3617301616604616301");
    golden(&FetchRequest::Close { slot: u32::MAX }, "0000000904a161731affffffff");
}

#[test]
fn the_octets_of_fetch_replies_stay() {
    golden(
        &opened(300 * 1024, PieceSet::all),
        concat!(
            "0000007411a461730161725820090909090909090909090909090909090909090909090909090909",
            "0909090909617a1a0004b000616c5840000000000000000000000000000000000000000000000000",
            "00000000000000000101010101010101010101010101010101010101010101010101010101010101",
        ),
    );
    golden(
        &opened(1, PieceSet::none),
        concat!(
            "0000005411a561730161725820090909090909090909090909090909090909090909090909090909",
            "0909090909617a01616c582000000000000000000000000000000000000000000000000000000000",
            "0000000061614100",
        ),
    );
    let FetchReply::Opened(vouched) = opened(1, PieceSet::all) else { unreachable!("just made") };
    let voucher = Voucher::from_bytes(&[5; Voucher::BYTES]);
    let head = "000000b411a561730161725820";
    let root = "0909090909090909090909090909090909090909090909090909090909090909";
    let list = "0000000000000000000000000000000000000000000000000000000000000000";
    let vouchers = "05".repeat(Voucher::BYTES);
    golden(
        &FetchReply::Opened(Opened { vouchers: vec![voucher], ..vouched }),
        &format!("{head}{root}617a01616c5820{list}61765860{vouchers}"),
    );
    golden(
        &FetchReply::Refused { slot: 1, reason: RefusedReason::Busy },
        "0000000812a2617301617702",
    );
    let head = PieceHead { slot: 1, index: 2, encoding: Encoding::Zstd, len: 70_000 };
    golden(&FetchReply::Piece(head), "0000001213a4617301616902616501616e1a00011170");
    golden(&FetchReply::Missing { slot: 1, index: 4095 }, "0000000a14a26173016169190fff");
    golden(
        &FetchReply::Have { slot: 1, ranges: vec![(0, 2), (7, 1)] },
        "0000001815a261730161675000000000000000020000000700000001",
    );
}

#[test]
fn the_largest_messages_fit_their_limits() {
    let hashes = vec![StoreHash([1; 20]); MAX_QUERY_HASHES];
    assert!(read::<QueryRequest>(&frame(&QueryRequest { hashes })).is_ok());

    let half = |count| {
        let mut set = PieceSet::none(count);
        (0..count).step_by(2).for_each(|index| assert!(set.insert(index)));
        set
    };
    let largest = opened(1 << 30, half);
    assert_eq!(read::<FetchReply>(&frame(&largest)).as_ref(), Ok(&largest));

    let ranges = (0..MAX_HAVE_RANGES as u32).map(|i| (2 * i, 1)).collect();
    assert!(read::<FetchReply>(&frame(&FetchReply::Have { slot: u32::MAX, ranges })).is_ok());

    let narinfo = vec![0; MAX_NARINFO_BYTES];
    let answer = |index| Answer {
        index,
        narinfo: narinfo.clone(),
        root: Some(Root([0; 32])),
        pieces_held: MAX_PIECES,
    };
    let answers = (0..3).map(answer).collect();
    let response = QueryResponse { answers, last: true, ask_again_from: Some(3) };
    assert!(read::<QueryResponse>(&frame(&response)).is_ok());
}

#[test]
fn an_answer_costs_no_more_than_is_allowed_for_it() {
    let answer = Answer {
        index: 999,
        narinfo: vec![0; MAX_NARINFO_BYTES],
        root: Some(Root([0; 32])),
        pieces_held: MAX_PIECES,
    };
    let empty = frame(&QueryResponse::default()).len();
    let full = frame(&QueryResponse { answers: vec![answer], ..Default::default() }).len();
    assert!(full - empty <= MAX_NARINFO_BYTES + super::query::ANSWER_OVERHEAD_BYTES);
}

#[test]
fn a_length_is_refused_before_the_body_is_there() {
    let too_long = FetchReply::header([0xff, 0xff, 0xff, 0xff, 19]);
    assert!(matches!(too_long, Err(WireError::TooLong { kind: 19, found: 0xffff_fffe, .. })));
    assert_eq!(FetchReply::header([0; 5]), Err(WireError::Empty { message: "fetch reply" }));
    assert!(matches!(FetchReply::header([0, 0, 0, 1, 1]), Err(WireError::Kind { kind: 1, .. })));
    assert!(FetchRequest::header([0, 0, 0, 1, 1]).is_ok());
}

#[test]
fn fields_beyond_their_bounds_are_refused() {
    let refused = |octets: Vec<u8>, field: &str| match read::<FetchReply>(&octets) {
        Err(WireError::Field { field: found, .. }) => assert!(found.contains(field), "{found}"),
        other => panic!("{field}: {other:?}"),
    };
    refused(frame(&FetchReply::Missing { slot: 1, index: MAX_PIECES }), "index");
    refused(frame(&FetchReply::Have { slot: 1, ranges: vec![(1, u32::MAX)] }), "range");
    for (first, count) in [(u32::MAX, u32::MAX), (MAX_PIECES, 1), (0, MAX_PIECES + 1)] {
        let octets = frame(&FetchRequest::Want { slot: 0, first, count });
        assert!(matches!(read::<FetchRequest>(&octets), Err(WireError::Field { .. })));
    }
    let hashes = vec![StoreHash([1; 20]); MAX_QUERY_HASHES + 1];
    assert!(matches!(
        read::<QueryRequest>(&frame(&QueryRequest { hashes })),
        Err(WireError::Field { .. })
    ));
    let answer = Answer { index: 3, narinfo: vec![], root: None, pieces_held: 2 };
    for second in [0, 3, MAX_QUERY_HASHES as u32] {
        let answers = vec![answer.clone(), Answer { index: second, ..answer.clone() }];
        let octets = frame(&QueryResponse { answers, ..Default::default() });
        assert!(matches!(read::<QueryResponse>(&octets), Err(WireError::Field { .. })));
    }
}

#[test]
fn a_piece_list_must_fit_the_size_of_its_nar() {
    let octets = frame(&opened(300 * 1024, PieceSet::all));
    let size = octets.windows(6).position(|w| w == b"\x61z\x1a\0\x04\xb0").expect("the size");
    for wrong in [[0u8, 0, 0, 1], [0xff, 0xff, 0xff, 0xff]] {
        let mut octets = octets.clone();
        octets[size + 3..size + 7].copy_from_slice(&wrong);
        assert!(matches!(read::<FetchReply>(&octets), Err(WireError::Field { .. })));
    }
}

#[test]
fn unknown_tags_are_skipped_and_trailing_octets_are_not() {
    // {"s": 7, "future": [1, {"x": "y"}]}
    let body = b"\xa2\x61s\x07\x66future\x82\x01\xa1\x61x\x61y";
    assert_eq!(FetchRequest::decode(4, body), Ok(FetchRequest::Close { slot: 7 }));
    let trailing = FetchRequest::decode(4, b"\xa1\x61s\x07\x00");
    assert!(matches!(trailing, Err(WireError::Malformed { .. })));
    let deep = [b"\xa2\x61s\x07\x61x".as_slice(), &[0x81; 200], b"\0"].concat();
    assert!(matches!(FetchRequest::decode(4, &deep), Err(WireError::Malformed { .. })));
    // An array that claims 2^64 - 1 answers.
    let claims = b"\xa1\x61a\x9b\xff\xff\xff\xff\xff\xff\xff\xff";
    assert!(matches!(QueryResponse::decode(2, claims), Err(WireError::Malformed { .. })));
    // A byte string that claims 2^62 octets.
    let claims = b"\xa1\x61h\x5b\x40\0\0\0\0\0\0\0abc";
    assert!(matches!(QueryRequest::decode(1, claims), Err(WireError::Malformed { .. })));
}

#[test]
fn later_reasons_for_refusing_are_understood_as_other() {
    let reply = FetchReply::decode(18, b"\xa2\x61s\x07\x61w\x18\xc8");
    assert_eq!(reply, Ok(FetchReply::Refused { slot: 7, reason: RefusedReason::Other }));
}

fn bucket(number: u8) -> Bucket {
    Bucket::new(number).expect("there are 64")
}

fn announce_messages() -> (AnnounceRequest, AnnounceReply) {
    let request = AnnounceRequest::Announce {
        bucket: bucket(0),
        keys: vec![ItemKey([0; 16])],
        life: Duration::from_secs(172_800),
        addresses: vec![vec![1, 2]],
        share: Share::percent(93),
    };
    let addresses = vec![ByteBuf::from([1, 2])];
    let near = NamedPeer { peer: vec![9], addresses, seen: 0, share: None };
    let provider = NamedPeer { peer: vec![8], addresses: vec![], seen: 60, share: Some(93) };
    let (nearer, providers) = (vec![near], vec![provider]);
    (request, AnnounceReply { nearer, known: vec![1], providers, hits: vec![(0, 0)] })
}

#[test]
fn the_octets_of_announcements_stay() {
    golden(&AnnounceRequest::Look { bucket: bucket(5) }, "0000000501a1616205");
    let keys = vec![ItemKey([0; 16])];
    golden(
        &AnnounceRequest::Find { bucket: bucket(0), keys: keys.clone() },
        "0000001804a2616200616b5000000000000000000000000000000000",
    );
    golden(
        &AnnounceRequest::Withdraw { bucket: bucket(0), keys },
        "0000001803a2616200616b5000000000000000000000000000000000",
    );
    let (request, reply) = announce_messages();
    golden(
        &request,
        concat!(
            "0000002902a5616200616b500000000000000000000000000000000061741a0002a30061618142",
            "0102617518",
            "5d"
        ),
    );
    golden(
        &reply,
        concat!(
            "0000002e11a4616e81a261694109616181420102616b4101617081a46169410861618061731",
            "83c6175185d61684400000000"
        ),
    );
}

#[test]
fn announcements_keep_to_their_bucket_and_bounds() {
    let odd = AnnounceRequest::Find { bucket: bucket(1), keys: vec![ItemKey([0; 16])] };
    assert!(matches!(read::<AnnounceRequest>(&frame(&odd)), Err(WireError::Field { .. })));
    assert!(AnnounceRequest::decode(1, b"\xa1\x61b\x18\x40").is_err(), "there is no bucket 64");
    let keys = vec![ItemKey([0; 16]); crate::limits::MAX_LOOKUP_KEYS + 1];
    let many = AnnounceRequest::Find { bucket: bucket(0), keys };
    assert!(matches!(read::<AnnounceRequest>(&frame(&many)), Err(WireError::Field { .. })));
    let mut reply = announce_messages().1;
    reply.hits = vec![(0, 1)];
    assert!(matches!(read::<AnnounceReply>(&frame(&reply)), Err(WireError::Field { .. })));
}

/// Whatever decodes must encode to something that decodes to the same.
fn stable<M: Message + PartialEq + Debug>(kind: u8, body: &[u8]) -> Result<(), TestCaseError> {
    if let Ok(message) = M::decode(kind, body) {
        prop_assert_eq!(read::<M>(&frame(&message)), Ok(message));
    }
    Ok(())
}

fn all_stable(kind: u8, body: &[u8]) -> Result<(), TestCaseError> {
    stable::<QueryRequest>(kind, body)?;
    stable::<QueryResponse>(kind, body)?;
    stable::<AnnounceRequest>(kind, body)?;
    stable::<AnnounceReply>(kind, body)?;
    stable::<FetchRequest>(kind, body)?;
    stable::<FetchReply>(kind, body)
}

fn sample_frames() -> Vec<Vec<u8>> {
    let answer = Answer { index: 3, narinfo: b"hi".to_vec(), root: None, pieces_held: 2 };
    let (slot, nar_hash) = (1, NarHash([3; 32]));
    let head = PieceHead { slot, index: 2, encoding: Encoding::Raw, len: 70_000 };
    vec![
        frame(&QueryRequest { hashes: vec![StoreHash([1; 20]); 3] }),
        frame(&QueryResponse { answers: vec![answer], last: true, ask_again_from: Some(9) }),
        frame(&FetchRequest::Open { slot, nar_hash, nar_size: 77, first: 0, count: 4 }),
        frame(&FetchRequest::Want { slot, first: 4, count: 1000 }),
        frame(&opened(600 * 1024, PieceSet::none)),
        frame(&FetchReply::Piece(head)),
        frame(&FetchReply::Have { slot, ranges: vec![(0, 2), (7, 1)] }),
        frame(&announce_messages().0),
        frame(&announce_messages().1),
    ]
}

proptest! {
    #[test]
    fn arbitrary_octets_are_refused_or_understood(
        kind in 0..32u8,
        body in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        all_stable(kind, &body)?;
    }

    #[test]
    fn damaged_frames_are_refused_or_understood(
        which in 0..9usize,
        position: prop::sample::Index,
        octet: u8,
        cut: prop::sample::Index,
    ) {
        let mut octets = sample_frames()[which].clone();
        let kind = octets[4];
        let mut body = octets.split_off(HEADER_BYTES);
        let index = position.index(body.len());
        body[index] = octet;
        all_stable(kind, &body)?;
        body.truncate(cut.index(body.len()));
        all_stable(kind, &body)?;
    }

    #[test]
    fn requests_survive_the_wire(
        slot: u32, hash: [u8; 32], nar_size in 0..=crate::limits::MAX_NAR_BYTES,
        first in 0..MAX_PIECES, share in 0.0..1.0f64,
    ) {
        let count = (f64::from(MAX_PIECES - first) * share) as u32;
        let nar_hash = NarHash(hash);
        for request in [
            FetchRequest::Open { slot, nar_hash, nar_size, first, count },
            FetchRequest::Want { slot, first, count },
            FetchRequest::Cancel { slot, first, count },
            FetchRequest::Close { slot },
        ] {
            prop_assert_eq!(read::<FetchRequest>(&frame(&request)), Ok(request));
        }
    }
}
