//! Asking the places that answer for a registry, one after the other.

use crate::error::RegistryError;
use crate::http::Host;

/// The first answer of those that may be asked, in their order. The last error counts: it is
/// the registry's own, after its mirrors'. `None`: there is nobody to ask.
pub(crate) async fn first<T, F>(
    hosts: &[Host],
    may: impl Fn(&Host) -> bool,
    ask: impl Fn(Host) -> F,
) -> Option<Result<T, RegistryError>>
where
    F: Future<Output = Result<T, RegistryError>>,
{
    let mut last = None;
    for host in hosts.iter().filter(|host| may(host)) {
        match ask(host.clone()).await {
            Err(error) if error.is_worth_another_source() => {
                tracing::debug!(source = host.name(), %error, "trying the next source");
                last = Some(Err(error));
            }
            answer => return Some(answer),
        }
    }
    last
}
