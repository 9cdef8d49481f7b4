//! What is answered here: names and addresses of the container's networks.

use std::net::IpAddr;

use domain::base::Name;
use domain::base::iana::{Rcode, Rtype};
use domain::base::name::FromStrError;
use domain::rdata::{A, Aaaa, Ptr};

use crate::query::Query;
use crate::{BoxError, Chain, Names, reverse};

/// How long an answer may be remembered, in seconds (Docker's).
const TTL: u32 = 600;

/// The answer, unless the question is for somebody else. A name that is known here is known here
/// for every type of record: asked elsewhere it would not exist.
pub(crate) fn local(query: &Query<'_>, names: &dyn Names) -> Option<Vec<u8>> {
    if matches!(query.kind(), Rtype::AXFR | Rtype::IXFR) {
        // Many messages, which a proxy of questions and answers does not carry.
        return Some(query.refuse(Rcode::NOTIMP));
    }
    let name = query.name().filter(|_| query.is_internet())?;
    if name.is_empty() {
        return None; // the root
    }
    let found = match reverse::address(&name) {
        Some(address) if query.kind() == Rtype::PTR => names
            .name_of(address)
            .map(|name| Some(pointer(query, &name?))),
        Some(_) => return None,
        None => names
            .addresses(&name)
            .map(|found| Some(addresses(query, found?))),
    };
    found.unwrap_or_else(|error: BoxError| {
        tracing::warn!(name, error = %Chain(&error), "a name cannot be looked up");
        Some(query.refuse(Rcode::SERVFAIL))
    })
}

fn pointer(query: &Query<'_>, name: &str) -> Vec<u8> {
    let mut answer = query.answer();
    let parsed: Result<Name<Vec<u8>>, FromStrError> = Name::vec_from_str(name);
    match parsed {
        Ok(name) if answer.push((query.owner(), TTL, Ptr::new(&name))).is_err() => {
            answer.header_mut().set_tc(true);
        }
        Ok(_) => {}
        // A container may have a name that DNS has no room for.
        Err(error) => tracing::debug!(name, %error, "not a name for DNS"),
    }
    query.finish(answer)
}

/// Those of the kind asked for, beginning with any: so that the askers spread.
fn addresses(query: &Query<'_>, mut found: Vec<IpAddr>) -> Vec<u8> {
    let kind = query.kind();
    found.retain(|address| match address {
        IpAddr::V4(_) => matches!(kind, Rtype::A | Rtype::ANY),
        IpAddr::V6(_) => matches!(kind, Rtype::AAAA | Rtype::ANY),
    });
    if found.len() > 1 {
        let first = usize::from(crate::exchange::random()) % found.len();
        found.rotate_left(first);
    }
    let mut answer = query.answer();
    for address in found {
        let pushed = match address {
            IpAddr::V4(v4) => answer.push((query.owner(), TTL, A::new(v4))),
            IpAddr::V6(v6) => answer.push((query.owner(), TTL, Aaaa::new(v6))),
        };
        if pushed.is_err() {
            answer.header_mut().set_tc(true);
            break;
        }
    }
    query.finish(answer)
}
