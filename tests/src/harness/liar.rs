//! Peers that keep to the protocol and lie: about what a nar is, or about what they send.

use super::holding::{Holding, piece_list};
use bytes::Bytes;
use libp2p::PeerId;
use libp2p::identity::Keypair;
use narswarm_node::net::{Held, Net, NetConfig, Responder, ServedNar};
use narswarm_protocol::hash::{NarHash, Root};
use narswarm_protocol::piece::PieceList;
use narswarm_protocol::piece_set::PieceSet;
use narswarm_protocol::store_path::StoreHash;
use narswarm_protocol::wire::fetch::{Encoding, Frame};
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What a peer lies about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// Nothing.
    Honest,
    /// The true piece list, but octets that aren't those of the pieces.
    BadPieces,
    /// Another nar of the same size, with a piece list that fits it.
    OtherNar,
    /// Narinfos of another item than the one asked for.
    OtherNarinfo,
    /// Frames that no zstd decoder takes.
    BrokenFrames,
    /// Frames that are far larger when decoded than a piece.
    Bombs,
    /// Everything is promised and nothing is there.
    NothingHeld,
    /// All pieces but the last third.
    Partial,
}

/// A peer that lies about some items.
pub struct Liar {
    net: Net,
    seen: Arc<Seen>,
}

/// How often a peer was asked what.
#[derive(Debug, Default)]
pub struct Seen {
    queries: AtomicUsize,
    opens: AtomicUsize,
    pieces: AtomicUsize,
}

impl Seen {
    /// Queries, in each of which any number of items may have been asked for.
    #[must_use]
    pub fn queries(&self) -> usize {
        self.queries.load(Ordering::Relaxed)
    }

    /// Nars opened.
    #[must_use]
    pub fn opens(&self) -> usize {
        self.opens.load(Ordering::Relaxed)
    }

    /// Pieces asked for.
    #[must_use]
    pub fn pieces(&self) -> usize {
        self.pieces.load(Ordering::Relaxed)
    }
}

impl Liar {
    /// Starts one that others can enter the swarm by.
    ///
    /// # Panics
    /// When it can't listen.
    pub async fn start(lie: Lie, holdings: &[Holding]) -> Self {
        Self::start_at(Ipv4Addr::LOCALHOST, lie, holdings).await
    }

    /// The same at another address of the host whose threads this runs on.
    ///
    /// # Panics
    /// When it can't listen.
    pub async fn start_at(listen: Ipv4Addr, lie: Lie, holdings: &[Holding]) -> Self {
        let seen = Arc::<Seen>::default();
        let stock = Stock { lie, seen: seen.clone(), items: items(lie, holdings) };
        let mut config = NetConfig::new(Keypair::generate_ed25519());
        config.listen = vec![format!("/ip4/{listen}/tcp/0").parse().expect("an address")];
        let (net, _) = Net::start(config, Arc::new(stock)).await.expect("the address is there");
        Self { net, seen }
    }

    /// Where peers connect to, with the peer id.
    ///
    /// # Panics
    /// When it listens nowhere.
    #[must_use]
    pub fn address(&self) -> String {
        self.net.listen_addresses().first().expect("an address").to_string()
    }

    /// What it was asked.
    #[must_use]
    pub fn seen(&self) -> &Seen {
        &self.seen
    }

    /// How many peers are connected to it.
    #[must_use]
    pub fn connected(&self) -> usize {
        self.net.connected().len()
    }

    /// Ends it.
    pub async fn stop(self) {
        self.net.shutdown().await;
    }
}

struct Item {
    hash: StoreHash,
    narinfo: Bytes,
    nar_hash: NarHash,
    /// What is given as the nar.
    octets: Bytes,
    list: PieceList,
    lie: Lie,
    seen: Arc<Seen>,
}

struct Stock {
    lie: Lie,
    seen: Arc<Seen>,
    items: Vec<Item>,
}

fn items(lie: Lie, holdings: &[Holding]) -> Vec<Item> {
    let of = |(index, holding): (usize, &Holding)| {
        let mut octets = holding.nar().clone();
        if lie == Lie::OtherNar {
            // One octet in the middle, so that the beginning gives nothing away.
            let mut other = octets.to_vec();
            other[octets.len() / 2] ^= 1;
            octets = other.into();
        }
        let told = match lie {
            Lie::OtherNarinfo => &holdings[(index + 1) % holdings.len()],
            _ => holding,
        };
        Item {
            hash: holding.narinfo.item().hash(),
            narinfo: Bytes::copy_from_slice(told.narinfo.original()),
            nar_hash: holding.narinfo.nar_hash(),
            list: piece_list(&octets),
            octets,
            lie,
            seen: Arc::default(),
        }
    };
    holdings.iter().enumerate().map(of).collect()
}

impl Responder for Stock {
    fn query(&self, hashes: &[StoreHash]) -> Vec<Option<Held>> {
        self.seen.queries.fetch_add(1, Ordering::Relaxed);
        let held = |item: &Item| Held {
            narinfo: item.narinfo.clone(),
            root: Some(item.root()),
            pieces_held: item.list.layout().piece_count(),
        };
        let find = |hash: &StoreHash| self.items.iter().find(|item| item.hash == *hash).map(held);
        hashes.iter().map(find).collect()
    }

    fn open(&self, _: PeerId, nar: &NarHash) -> Option<Arc<dyn ServedNar>> {
        self.seen.opens.fetch_add(1, Ordering::Relaxed);
        let item = self.items.iter().find(|item| item.nar_hash == *nar)?;
        (self.lie != Lie::NothingHeld).then(|| item.served(self.seen.clone()))
    }
}

impl Item {
    fn served(&self, seen: Arc<Seen>) -> Arc<dyn ServedNar> {
        Arc::new(Self {
            hash: self.hash,
            narinfo: self.narinfo.clone(),
            nar_hash: self.nar_hash,
            octets: self.octets.clone(),
            list: self.list.clone(),
            lie: self.lie,
            seen,
        })
    }

    fn piece(&self, index: u32) -> Bytes {
        let range = self.list.layout().piece_range(index);
        self.octets.slice(range.start as usize..range.end as usize)
    }
}

impl ServedNar for Item {
    fn root(&self) -> Root {
        self.list.root(&self.nar_hash)
    }

    fn list(&self) -> &PieceList {
        &self.list
    }

    fn frame(&self, index: u32) -> io::Result<Option<Frame>> {
        self.seen.pieces.fetch_add(1, Ordering::Relaxed);
        let piece = self.piece(index);
        let raw = |bytes| Frame { encoding: Encoding::Raw, bytes };
        let zstd = |octets: &[u8]| zstd::encode_all(octets, 1).map(Bytes::from);
        Ok(Some(match self.lie {
            Lie::BadPieces => raw(piece.iter().map(|octet| octet ^ 0x55).collect()),
            Lie::BrokenFrames => Frame { encoding: Encoding::Zstd, bytes: piece.slice(..1) },
            Lie::Bombs => Frame { encoding: Encoding::Zstd, bytes: zstd(&vec![0; 64 << 20])? },
            _ => Frame { encoding: Encoding::Zstd, bytes: zstd(&piece)? },
        }))
    }

    fn held(&self) -> PieceSet {
        let count = self.list.layout().piece_count();
        let mut held = PieceSet::all(count);
        if self.lie == Lie::Partial {
            held = PieceSet::none(count);
            (0..count - count / 3).for_each(|index| {
                held.insert(index);
            });
        }
        held
    }
}
