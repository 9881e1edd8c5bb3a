//! Records to bytes and back: a version byte, then bincode; long texts shrunk with zstd. Nobody else names either.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::StoreError;

/// The shape in which records are written now.
const VERSION: u8 = 5;

/// Longest text that is unpacked, in bytes; longer ones are refused before they are stored.
pub const TEXT_BYTES_MAX: usize = 128 << 20;

/// sled puts big values into files that it never syncs, so none is longer than this.
pub const VALUE_BYTES_MAX: usize = 64 << 10;
/// Longer texts are stored in parts of this size.
pub const PART_BYTES: usize = 60_000;

pub fn encode<T: Serialize>(record: &T) -> Result<Vec<u8>, StoreError> {
    let mut bytes = vec![VERSION];
    let body = bincode::serde::encode_to_vec(record, bincode::config::standard())
        .map_err(|err| StoreError::Codec(err.to_string()))?;
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, StoreError> {
    match bytes.split_first() {
        Some((&VERSION, body)) => {
            // The limit keeps a damaged length from asking for all the memory there is. A value of at most 64 KiB is
            // nowhere near it.
            let config = bincode::config::standard().with_limit::<{ 4 << 20 }>();
            let (record, read) = bincode::serde::decode_from_slice(body, config)
                .map_err(|err| StoreError::Codec(err.to_string()))?;
            if read == body.len() {
                Ok(record)
            } else {
                Err(StoreError::Codec(format!("{} bytes too many", body.len() - read)))
            }
        }
        Some((1..=4, _)) => Err(StoreError::Codec(
            "it was written by a version before 0.1.0, whose data this one does not read: finish its work with that \
             version, or begin with an empty data folder"
                .to_owned(),
        )),
        Some((version, _)) => Err(StoreError::Codec(format!("version {version} is newer than this program"))),
        None => Err(StoreError::Codec("an empty record".to_owned())),
    }
}

/// Shrinks a text.
pub fn pack(text: &[u8]) -> Result<Vec<u8>, StoreError> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(StoreError::TooLong { bytes: text.len(), max: TEXT_BYTES_MAX });
    }
    zstd::bulk::compress(text, 3).map_err(|err| StoreError::Codec(err.to_string()))
}

/// The text again.
pub fn unpack(packed: &[u8]) -> Result<Vec<u8>, StoreError> {
    use std::io::Read;
    let codec = |err: std::io::Error| StoreError::Codec(err.to_string());
    let mut decoder = zstd::stream::read::Decoder::new(packed).map_err(codec)?;
    // What `pack` writes needs 2 MiB; a damaged head must not ask for 128.
    decoder.window_log_max(23).map_err(codec)?;
    let mut text = Vec::new();
    let limit = u64::try_from(TEXT_BYTES_MAX).unwrap_or(u64::MAX);
    decoder.take(limit + 1).read_to_end(&mut text).map_err(codec)?;
    if text.len() > TEXT_BYTES_MAX {
        return Err(StoreError::TooLong { bytes: text.len(), max: TEXT_BYTES_MAX });
    }
    Ok(text)
}

impl super::StoreReader {
    /// For the fuzz targets: a record of this kind read from bytes and written again.
    #[doc(hidden)]
    pub fn record_again(kind: &str, bytes: &[u8]) -> Result<Vec<u8>, StoreError> {
        match kind {
            "request" => encode(&decode::<crate::domain::request::Request>(bytes)?),
            "batch" => encode(&decode::<crate::domain::batch::Batch>(bytes)?),
            "session" => encode(&decode::<crate::domain::session::Session>(bytes)?),
            _ => unpack(bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back_and_nothing_else_does() {
        let bytes = encode(&(7u32, "text".to_owned())).unwrap();
        assert_eq!(decode::<(u32, String)>(&bytes).unwrap(), (7, "text".to_owned()));
        assert!(decode::<(u32, String)>(&bytes[..bytes.len() - 1]).is_err());
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(decode::<(u32, String)>(&longer).is_err());
        assert!(decode::<(u32, String)>(&[9, 7, 0]).is_err());
        assert!(decode::<(u32, String)>(&[]).is_err());
    }

    #[test]
    fn texts_shrink_and_come_back() {
        let text = "the same words ".repeat(500);
        let packed = pack(text.as_bytes()).unwrap();
        assert!(packed.len() * 3 < text.len());
        assert_eq!(unpack(&packed).unwrap(), text.as_bytes());
        assert!(unpack(b"no zstd").is_err());
        // As long as they may be, and of what cannot be shrunk.
        let noise: Vec<u8> =
            (0..20_000_000_u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
        assert_eq!(unpack(&pack(&noise).unwrap()).unwrap(), noise);
    }
}
