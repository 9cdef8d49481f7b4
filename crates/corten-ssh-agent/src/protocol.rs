//! Messages of the agent protocol, without the length before each.

use crate::Keys;

const FAILURE: u8 = 5;
const REQUEST_IDENTITIES: u8 = 11;
const IDENTITIES_ANSWER: u8 = 12;
const SIGN_REQUEST: u8 = 13;
const SIGN_RESPONSE: u8 = 14;

/// Answers a request.
pub(crate) fn answer(keys: &Keys, request: &[u8]) -> Vec<u8> {
    match request.split_first() {
        Some((&REQUEST_IDENTITIES, [])) => identities(keys),
        Some((&SIGN_REQUEST, rest)) => signature(keys, rest),
        _ => None,
    }
    .unwrap_or_else(|| vec![FAILURE])
}

fn identities(keys: &Keys) -> Option<Vec<u8>> {
    let mut answer = vec![IDENTITIES_ANSWER];
    answer.extend(u32::try_from(keys.0.len()).ok()?.to_be_bytes());
    for key in &keys.0 {
        string(&mut answer, key.blob());
        string(&mut answer, b""); // its comment
    }
    Some(answer)
}

fn signature(keys: &Keys, mut request: &[u8]) -> Option<Vec<u8>> {
    let blob = take_string(&mut request)?;
    let data = take_string(&mut request)?;
    let flags = u32::from_be_bytes(request.try_into().ok()?);
    let key = keys.0.iter().find(|key| key.blob() == blob)?;
    let mut answer = vec![SIGN_RESPONSE];
    string(&mut answer, &key.sign(data, flags)?);
    Some(answer)
}

/// Appends bytes, their number first.
pub(crate) fn string(to: &mut Vec<u8>, bytes: &[u8]) {
    // Keys and signatures: some hundred bytes.
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    to.extend(length.to_be_bytes());
    to.extend(bytes);
}

fn take_string<'a>(from: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, rest) = from.split_first_chunk()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    let (bytes, rest) = rest.split_at_checked(length)?;
    *from = rest;
    Some(bytes)
}
