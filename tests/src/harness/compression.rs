//! The compressions that a substitute server may use, written and read without the node's code.

use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use liblzma::read::XzDecoder;
use liblzma::stream::{Action, CONCATENATED, Filters, LzmaOptions, Status, Stream};
use narswarm_protocol::narinfo::Compression;
use std::io::{Read, Write};

/// The four that Guix's servers use.
pub const OF_GUIX: [Compression; 4] =
    [Compression::None, Compression::Gzip, Compression::Lzip, Compression::Zstd];

/// Dictionary of what is written as lzip: 1 MiB, which is 2 to the power of this.
const LZIP_DICTIONARY_LOG: u8 = 20;

/// Memory that reading lzip may take: what `lzip -9` demands, and some.
const LZIP_MEMORY_BYTES: u64 = 64 << 20;

/// Compresses.
///
/// # Panics
/// For compressions that only Nix uses.
#[must_use]
pub fn compress(compression: Compression, octets: &[u8]) -> Vec<u8> {
    match compression {
        Compression::None => octets.to_vec(),
        Compression::Gzip => {
            let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(octets).expect("memory takes everything");
            encoder.finish().expect("memory takes everything")
        }
        Compression::Lzip => lzip(octets),
        Compression::Zstd => zstd::encode_all(octets, 1).expect("memory takes everything"),
        other => panic!("{other} is not written here"),
    }
}

/// Decompresses.
///
/// # Panics
/// When the octets are damaged, and for compressions that only Nix uses.
#[must_use]
pub fn decompress(compression: Compression, octets: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    match compression {
        Compression::None => Ok(octets.len()).inspect(|_| plain = octets.to_vec()),
        Compression::Gzip => MultiGzDecoder::new(octets).read_to_end(&mut plain),
        Compression::Lzip => {
            let stream = Stream::new_lzip_decoder(LZIP_MEMORY_BYTES, CONCATENATED)
                .expect("a decoder of known parameters");
            XzDecoder::new_stream(octets, stream).read_to_end(&mut plain)
        }
        Compression::Zstd => zstd::stream::read::Decoder::new(octets)
            .and_then(|mut decoder| decoder.read_to_end(&mut plain)),
        other => panic!("{other} is not read here"),
    }
    .unwrap_or_else(|error| panic!("damaged {compression}: {error}"));
    plain
}

/// One member: a header, an LZMA stream with its end marker, checksum and sizes.
fn lzip(octets: &[u8]) -> Vec<u8> {
    let mut options = LzmaOptions::new_preset(0).expect("a known preset");
    options.dict_size(1 << LZIP_DICTIONARY_LOG);
    let mut stream = Stream::new_raw_encoder(Filters::new().lzma1(&options))
        .expect("an encoder of known parameters");
    let mut member = b"LZIP\x01".to_vec();
    member.push(LZIP_DICTIONARY_LOG);
    loop {
        let read = usize::try_from(stream.total_in()).expect("no more than there is");
        member.reserve(64 * 1024);
        let status = stream.process_vec(&octets[read..], &mut member, Action::Finish);
        if status.expect("memory takes everything") == Status::StreamEnd {
            break;
        }
    }
    member.extend_from_slice(&crc32fast::hash(octets).to_le_bytes());
    member.extend_from_slice(&(octets.len() as u64).to_le_bytes());
    let size = member.len() as u64 + 8;
    member.extend_from_slice(&size.to_le_bytes());
    member
}
