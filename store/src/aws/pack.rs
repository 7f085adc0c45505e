//! Records as few bytes: a write costs by the kilobyte. zstd with a dictionary of the words that every record holds brings a job's record
//! from 1.5 KB to a third of it.

use zstd::bulk::{Compressor, Decompressor};

/// Never change it: everything that was ever written needs it to be read. A better one would be a second file and a second [`CODEC`].
const WORDS: &[u8] = include_bytes!("words.txt");
const CODEC: u8 = 1;
const PLAIN: u8 = 0;
/// Small inputs: what a higher level finds is in the dictionary already.
const LEVEL: i32 = 6;
/// Nothing bigger is ever made from a stored value, whatever its header says.
const MAX_BYTES: u64 = 256 * 1024 * 1024;

/// The first byte says how the rest is to be read.
pub(super) fn pack(content: &[u8]) -> Vec<u8> {
    let packed = Compressor::with_dictionary(LEVEL, WORDS).and_then(|mut compressor| compressor.compress(content));
    let (codec, body) = match &packed {
        Ok(packed) if packed.len() < content.len() => (CODEC, packed.as_slice()),
        _ => (PLAIN, content),
    };
    let mut whole = Vec::with_capacity(body.len() + 1);
    whole.push(codec);
    whole.extend_from_slice(body);
    whole
}

pub(super) fn unpack(packed: &[u8]) -> Result<Vec<u8>, String> {
    match packed.split_first() {
        Some((&PLAIN, body)) => Ok(body.to_vec()),
        Some((&CODEC, body)) => {
            let bytes = zstd::zstd_safe::get_frame_content_size(body).map_err(|_| "it is not what zstd writes")?;
            let bytes = bytes.filter(|bytes| *bytes <= MAX_BYTES).ok_or("it says that it is far too big")?;
            let capacity = usize::try_from(bytes).map_err(|error| error.to_string())?;
            let unpacked = Decompressor::with_dictionary(WORDS).and_then(|mut unpack| unpack.decompress(body, capacity));
            unpacked.map_err(|error| error.to_string())
        }
        Some((codec, _)) => Err(format!("it is written in form {codec}, which this version does not know")),
        None => Err("it is empty".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::table::sha256_hex;
    use super::*;

    #[test]
    fn the_dictionary_stays_as_it_was() {
        assert_eq!(sha256_hex(WORDS), "e2bb5a6d306f3a514636126b1d7b5ce49f1ae852df1bfcef7729cf05bf5fe04a");
    }

    #[test]
    fn what_was_packed_comes_back() {
        for content in [&b""[..], b"x", b"{\"version\":7,\"at\":\"2026-01-01T00:00:00Z\"}", &[7; 100_000]] {
            assert_eq!(unpack(&pack(content)).as_deref(), Ok(content));
        }
        let dense: Vec<u8> = (0..1000_u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        assert_eq!(unpack(&pack(&dense)), Ok(dense));
    }

    #[test]
    fn what_is_damaged_is_refused() {
        let packed = pack(&[b'a'; 5000]);
        for damaged in [&b""[..], &[9, 9], &packed[..packed.len() - 1], &[CODEC, 0, 1, 2]] {
            assert!(unpack(damaged).is_err(), "{damaged:?}");
        }
    }
}
