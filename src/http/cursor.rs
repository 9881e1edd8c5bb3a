//! Cursors: the last id of a page, signed together with what the list was asked for.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use uuid::Uuid;

use super::Api;
use super::query::Query;
use super::reply::ApiError;

type Signature = Hmac<Sha256>;

const CURSOR_SIGNATURE: usize = 16;

/// A cursor for the list that `scope` describes.
pub(super) fn make(api: &Api, scope: &str, id: &[u8; 16]) -> String {
    seal(api.shared.store.instance(), scope, id)
}

/// The id in the query's cursor, where there is one.
pub(super) fn of_query(api: &Api, scope: &str, query: &Query) -> Result<Option<[u8; 16]>, ApiError> {
    query.get("cursor").map(|cursor| unseal(api.shared.store.instance(), scope, cursor)).transpose()
}

pub(super) fn seal(instance: Uuid, scope: &str, id: &[u8; 16]) -> String {
    let mut bytes = id.to_vec();
    bytes.extend(signature(instance, scope, id).iter().take(CURSOR_SIGNATURE));
    URL_SAFE_NO_PAD.encode(bytes)
}

pub(super) fn unseal(instance: Uuid, scope: &str, cursor: &str) -> Result<[u8; 16], ApiError> {
    let bad = || {
        let detail = "this cursor is not from this list: take nextCursor as it is, with the same filter, or start anew";
        ApiError::invalid("bad_cursor", detail)
    };
    let bytes = URL_SAFE_NO_PAD.decode(cursor).map_err(|_| bad())?;
    let (id, signed) = bytes.split_first_chunk::<16>().ok_or_else(bad)?;
    let expected = signature(instance, scope, id);
    let expected = expected.get(..CURSOR_SIGNATURE).unwrap_or_default();
    if bool::from(subtle::ConstantTimeEq::ct_eq(signed, expected)) { Ok(*id) } else { Err(bad()) }
}

fn signature(instance: Uuid, scope: &str, id: &[u8; 16]) -> Vec<u8> {
    // Not a secret worth much: the signature keeps mistakes out, the token keeps people out.
    let key = format!("cursor/{instance}");
    match Signature::new_from_slice(key.as_bytes()) {
        Ok(mut mac) => {
            mac.update(scope.as_bytes());
            mac.update(id);
            mac.finalize().into_bytes().to_vec()
        }
        // HMAC takes keys of every length.
        Err(_) => Vec::new(),
    }
}
