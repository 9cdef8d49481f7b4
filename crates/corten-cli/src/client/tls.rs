//! TLS towards an engine: `--tls` encrypts, `--tlsverify` also checks who answers.

use corten_tls::{Identity, TlsError, Trust, certificates, client};
use rustls::ClientConfig;

use super::ClientError;
use crate::globals::TlsFlags;

pub(super) fn client_config(flags: &TlsFlags) -> Result<ClientConfig, ClientError> {
    let failed = |error: TlsError| ClientError::Tls(error.to_string());
    let trust = match &flags.ca {
        // Encrypted, to whomever.
        _ if !flags.verify => Trust::Any,
        Some(ca) => Trust::Only(certificates(ca).map_err(failed)?),
        None => {
            return Err(ClientError::Tls(
                "--tlsverify needs the authority's certificate: give --tlscacert".into(),
            ));
        }
    };
    let identity = match (&flags.cert, &flags.key) {
        (Some(cert), Some(key)) => Some(Identity::read(cert, key).map_err(failed)?),
        (None, None) => None,
        _ => {
            return Err(ClientError::Tls(
                "a client certificate needs its key, and the other way round".into(),
            ));
        }
    };
    client(trust, identity).map_err(failed)
}
