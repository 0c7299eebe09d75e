//! Content-addressed files for HTTP clients: `/file/NAME/sha256/HASH`, as `guix publish` has it.
//!
//! Name and hash say which store item it would be, a fixed-output one that is a regular file; its
//! narinfo has to be signed as everybody's, and its nar is fetched and verified as every nar. The file
//! in it is hashed once more on its way out, against what was asked for, and its last octets are
//! withheld until that, and the nar, have turned out right. Parts of files aren't given: whoever asks
//! for one gets the whole, as HTTP allows.

use super::{Inner, body};
use crate::http::{NarAborted, NarForm, NarRefusal, NarReply, NarWant};
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use narswarm_protocol::content_address::ContentAddress;
use narswarm_protocol::nar::{Event, NarError, Reader};
use sha2::{Digest, Sha256};
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

type Body = BoxStream<'static, Result<Bytes, NarAborted>>;

/// Opens the file of this name and hash.
pub(super) async fn open(
    inner: &Arc<Inner>,
    name: &str,
    sha256: [u8; 32],
    want: NarWant,
) -> Result<NarReply, NarRefusal> {
    let address = ContentAddress::flat_file(&sha256);
    let item = address.item(&inner.config.store_dir, name, &[], false);
    let item = item.ok_or(NarRefusal::NotFound)?;
    // Also for its length alone, which stands in the nar.
    let whole = NarWant::Body { range: None };
    let nar = body::open(inner, &item, NarForm::Plain, whole).await?;
    let mut file = File::new(nar.body, nar.length, sha256);
    let length = file.begin().await?;
    let body = match want {
        NarWant::Head => stream::empty().boxed(),
        NarWant::Body { .. } => file.into_body(),
    };
    Ok(NarReply { length, range: None, nar_hash: None, body })
}

/// A nar on its way, and the file that comes out of it.
struct File {
    nar: Body,
    reader: Reader,
    hasher: Sha256,
    sha256: [u8; 32],
    /// Contents that can be sent.
    ready: VecDeque<Bytes>,
    has_ended: bool,
}

/// What a part of a nar was found to hold, besides contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Nothing,
    /// A regular file of this size.
    File(u64),
    /// Something else, which has no contents of its own.
    NoFile,
}

impl File {
    fn new(nar: Body, nar_size: u64, sha256: [u8; 32]) -> Self {
        let reader = Reader::with_limit(nar_size);
        let (hasher, ready) = (Sha256::new(), VecDeque::new());
        Self { nar, reader, hasher, sha256, ready, has_ended: false }
    }

    /// Reads up to where the file begins; tells its size.
    async fn begin(&mut self) -> Result<u64, NarRefusal> {
        loop {
            match self.advance().await.map_err(NarRefusal::Failed)? {
                Found::File(size) => return Ok(size),
                Found::NoFile => return Err(NarRefusal::NotFound),
                Found::Nothing if self.has_ended => return Err(NarRefusal::NotFound),
                Found::Nothing => {}
            }
        }
    }

    /// Takes the next part of the nar.
    async fn advance(&mut self) -> Result<Found, NarAborted> {
        let Some(part) = self.nar.next().await else {
            self.has_ended = true;
            self.reader.finish().map_err(malformed)?;
            // The nar was what was signed; whether it is what was asked for is another question.
            let found: [u8; 32] = self.hasher.clone().finalize().into();
            return if found == self.sha256 {
                Ok(Found::Nothing)
            } else {
                Err(NarAborted::Mismatch)
            };
        };
        let part = part?;
        let (mut found, ready, hasher) = (Found::Nothing, &mut self.ready, &mut self.hasher);
        let read = self.reader.push(&part, |event| -> Result<(), NarError> {
            match event {
                Event::File { size, .. } if found == Found::Nothing => found = Found::File(size),
                Event::Contents(octets) => {
                    hasher.update(octets);
                    ready.push_back(part.slice_ref(octets));
                }
                Event::FileEnd => {}
                _ => found = Found::NoFile,
            }
            Ok(())
        });
        read.map_err(malformed)?;
        Ok(found)
    }

    /// The contents, of which the last part comes only when all has been found right.
    fn into_body(self) -> Body {
        stream::try_unfold(self, |mut file| async move {
            while !file.has_ended && file.ready.len() < 2 {
                file.advance().await?;
            }
            Ok(file.ready.pop_front().map(|part| (part, file)))
        })
        .boxed()
    }
}

fn malformed(error: NarError) -> NarAborted {
    NarAborted::Local(io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use narswarm_protocol::nar::Writer;

    fn nar_of(events: &[Event<'_>]) -> Vec<u8> {
        let mut nar = Vec::new();
        let mut writer = Writer::new();
        for event in events {
            let mut sink = |octets: &[u8]| nar.extend_from_slice(octets);
            writer.write(*event, &mut sink).expect("a tree");
        }
        writer.finish().expect("a whole tree");
        nar
    }

    fn file_of(contents: &[u8]) -> Vec<u8> {
        let begin = Event::File { executable: false, size: contents.len() as u64 };
        if contents.is_empty() {
            return nar_of(&[begin, Event::FileEnd]);
        }
        nar_of(&[begin, Event::Contents(contents), Event::FileEnd])
    }

    /// What comes out of a nar that arrives in parts of this size: the announced length, the octets,
    /// and whether they ended well.
    async fn unpacked(
        nar: &[u8],
        part: usize,
        sha256: [u8; 32],
    ) -> Result<(u64, Vec<u8>, bool), NarRefusal> {
        let parts: Vec<_> = nar.chunks(part).map(|part| Ok(Bytes::copy_from_slice(part))).collect();
        let mut file = File::new(stream::iter(parts).boxed(), nar.len() as u64, sha256);
        let length = file.begin().await?;
        let (mut body, mut octets) = (file.into_body(), Vec::new());
        while let Some(part) = body.next().await {
            match part {
                Ok(part) => octets.extend_from_slice(&part),
                Err(_) => return Ok((length, octets, false)),
            }
        }
        Ok((length, octets, true))
    }

    #[tokio::test]
    async fn the_file_comes_out_however_the_nar_is_cut() {
        let contents: Vec<u8> = (0..5000u32).map(|n| (n * n) as u8).collect();
        let sha256 = Sha256::digest(&contents).into();
        let nar = file_of(&contents);
        for part in [1, 7, 8, 100, 4096, nar.len()] {
            let unpacked = unpacked(&nar, part, sha256).await.expect("a file");
            assert_eq!(unpacked, (5000, contents.clone(), true), "parts of {part}");
        }
        let empty = unpacked(&file_of(b""), 10, Sha256::digest(b"").into()).await.expect("a file");
        assert_eq!(empty, (0, vec![], true));
    }

    #[tokio::test]
    async fn a_file_of_another_hash_never_comes_whole() {
        let contents = vec![7; 5000];
        let nar = file_of(&contents);
        for part in [8, 1000, nar.len()] {
            let (length, octets, well) = unpacked(&nar, part, [1; 32]).await.expect("a file");
            assert_eq!((length, well), (5000, false));
            assert!(octets.len() < 5000, "parts of {part}: all was given away");
        }
    }

    #[tokio::test]
    async fn what_is_no_file_is_not_found() {
        let link = nar_of(&[Event::Symlink(b"x")]);
        let directory = nar_of(&[
            Event::Directory,
            Event::Entry(b"a"),
            Event::File { executable: false, size: 1 },
            Event::Contents(b"x"),
            Event::FileEnd,
            Event::DirectoryEnd,
        ]);
        for nar in [link, directory] {
            let refused = unpacked(&nar, 1000, Sha256::digest(b"x").into()).await;
            assert!(matches!(refused, Err(NarRefusal::NotFound)), "{refused:?}");
        }
        let cut = &file_of(&[1; 100])[..120];
        let (_, _, well) =
            unpacked(cut, 16, Sha256::digest([1; 100]).into()).await.expect("a file");
        assert!(!well);
    }
}
