//! What the fuzz target `dns_message` runs, and a property test beside it.

#![allow(clippy::expect_used, reason = "what it finds are panics")]

use std::net::IpAddr;

use domain::base::Message;

use crate::query::{PLAIN, Query, Transport};
use crate::server::{Verdict, judge};
use crate::{BoxError, Names, exchange};

/// Somebody who has every name, and more addresses than a datagram has room for.
struct Everybody;

impl Names for Everybody {
    fn addresses(&self, name: &str) -> Result<Option<Vec<IpAddr>>, BoxError> {
        let v4 = (0..=u8::MAX).map(|n| IpAddr::from([10, 0, 0, n]));
        let v6 = (0..=u8::MAX).map(|n| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, n.into()]));
        match name.len() % 3 {
            0 => Ok(Some(v4.chain(v6).collect())),
            1 => Ok(None),
            _ => Err(name.to_owned().into()),
        }
    }

    fn name_of(&self, address: IpAddr) -> Result<Option<String>, BoxError> {
        Ok(address.is_ipv4().then(|| format!("{address}.net")))
    }

    fn may_forward(&self) -> Result<bool, BoxError> {
        Ok(true)
    }
}

/// A message as a question, by UDP and TCP, and as an answer from outside.
///
/// # Panics
/// When what is said to it is wrong.
pub fn dns_message(bytes: &[u8]) {
    for transport in [Transport::Udp, Transport::Tcp] {
        let answer = match judge(bytes, transport, &Everybody, true) {
            Verdict::Answer(answer) => answer,
            Verdict::Forward => {
                let query = Query::read(bytes, transport);
                let query = query.expect("what is forwarded can be read");
                assert!(exchange::is_answer(&query.truncated(), bytes));
                query.truncated()
            }
            Verdict::Nothing => continue,
        };
        let limit = match Query::read(bytes, transport) {
            Ok(query) => query.limit(),
            Err(_) => PLAIN,
        };
        assert!(answer.len() <= limit, "{} of {limit}", answer.len());
        let answer = Message::from_octets(answer).expect("ours has a header");
        assert_eq!(answer.header().id().to_be_bytes(), bytes[..2]);
        assert!(answer.header().qr());
        let records = answer.answer().expect("ours can be read");
        assert!(records.into_iter().all(|record| record.is_ok()));
    }
    let question = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03web\0\0\x01\0\x01";
    if exchange::is_answer(bytes, question) {
        assert_eq!(bytes[..2], question[..2]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const QUESTIONS: [&[u8]; 3] = [
        b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03web\0\0\x01\0\x01",
        // With EDNS, for every type.
        b"\x12\x34\x01\0\0\x01\0\0\0\0\0\x01\x03Web\x03net\0\0\xff\0\x01\0\0\x29\x04\xd0\0\0\0\0\0\0",
        b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x012\x010\x0217\x03172\x07in-addr\x04arpa\0\0\x0c\0\x01",
    ];

    #[test]
    fn questions() {
        for question in QUESTIONS {
            assert!(Query::read(question, Transport::Udp).is_ok());
            dns_message(question);
        }
    }

    proptest! {
        #[test]
        fn hostile_messages(
            which in 0..QUESTIONS.len(),
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
            end: prop::sample::Index,
            rest in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let mut bytes = QUESTIONS[which].to_vec();
            for (at, value) in changes {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            dns_message(&bytes);
            bytes.truncate(end.index(bytes.len()));
            bytes.extend(rest);
            dns_message(&bytes);
        }
    }
}
