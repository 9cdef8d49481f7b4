//! Whom clients of TLS believe, and who they are: one place for the command line, the registry client
//! and the log drivers.
//!
//! The cryptography is ring's, of versions 1.2 and 1.3. However little is believed of a certificate,
//! signatures are always checked: the one who answers does hold its key.

mod verifier;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
pub use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use verifier::{Any, Machine, Trusted};

/// Whose certificates are believed.
#[derive(Debug, Clone)]
pub enum Trust {
    /// Anybody's.
    Any,
    /// Those of these authorities and of no other.
    Only(Vec<CertificateDer<'static>>),
    /// Those of the machine's authorities and of these.
    Machine(Vec<CertificateDer<'static>>),
    /// As [`Trust::Machine`]; one of these may also be the server's own (as Go has it: `openssl req
    /// -x509` makes one that says it is an authority, and Docker's manual tells to use it for both),
    /// byte for byte, and with the right time and name.
    MachineOrThemselves(Vec<CertificateDer<'static>>),
}

/// What a client shows: its certificate with its chain, and the key.
#[derive(Debug)]
pub struct Identity {
    /// The certificate first.
    pub chain: Vec<CertificateDer<'static>>,
    /// Of the certificate.
    pub key: PrivateKeyDer<'static>,
}

/// What is wrong with a file, or with what was made of it.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or is no PEM.
    #[error("{path}: {reason}", path = .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The certificates or the key cannot be used.
    #[error(transparent)]
    Unusable(#[from] rustls::Error),
}

/// The certificates in a file, in PEM; one at least.
///
/// # Errors
/// There is none, or it cannot be read.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |reason: String| TlsError::File {
        path: path.to_owned(),
        reason,
    };
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read.map_err(|error| failed(error.to_string()))? {
        none if none.is_empty() => Err(failed("no certificate".to_owned())),
        some => Ok(some),
    }
}

impl Identity {
    /// From two files, in PEM.
    ///
    /// # Errors
    /// One cannot be read.
    pub fn read(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let read = PrivateKeyDer::from_pem_file(key).map_err(|error| TlsError::File {
            path: key.to_owned(),
            reason: error.to_string(),
        });
        Ok(Self {
            chain: certificates(certificate)?,
            key: read?,
        })
    }

    /// From one text that has both.
    ///
    /// # Errors
    /// It is no PEM, or has no key.
    pub fn of_pem(pem: &[u8]) -> Result<Self, TlsError> {
        let bad = |error: rustls::pki_types::pem::Error| {
            TlsError::Unusable(rustls::Error::General(error.to_string()))
        };
        let chain = CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>();
        Ok(Self {
            chain: chain.map_err(bad)?,
            key: PrivateKeyDer::from_pem_slice(pem).map_err(bad)?,
        })
    }
}

/// How a client connects.
///
/// # Errors
/// A certificate or the key cannot be used. The machine's authorities are read later, at the first
/// certificate: one who cannot have them then does not believe it.
pub fn client(trust: Trust, identity: Option<Identity>) -> Result<ClientConfig, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?;
    let builder = match trust {
        Trust::Any => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Any(provider))),
        Trust::Only(authorities) => {
            let mut roots = RootCertStore::empty();
            for authority in authorities {
                roots.add(authority)?;
            }
            builder.with_root_certificates(roots)
        }
        Trust::Machine(more) => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Machine::new(provider, more)?)),
        Trust::MachineOrThemselves(more) => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Trusted(Machine::new(provider, more)?))),
    };
    match identity {
        None => Ok(builder.with_no_client_auth()),
        Some(Identity { chain, key }) => Ok(builder.with_client_auth_cert(chain, key)?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_named_with_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let empty = dir.path().join("empty");
        std::fs::write(&empty, "").unwrap();
        let told = certificates(&empty).unwrap_err().to_string();
        assert_eq!(told, format!("{}: no certificate", empty.display()));
        for missing in [
            certificates(&dir.path().join("x")).map(drop),
            Identity::read(&empty, &empty).map(drop),
        ] {
            let told = missing.unwrap_err().to_string();
            assert!(told.starts_with(dir.path().to_str().unwrap()), "{told}");
        }
        assert!(Identity::of_pem(b"nothing").is_err());
        assert!(client(Trust::Any, None).is_ok());
        let bad = || vec![CertificateDer::from(vec![1])];
        for trust in [
            Trust::Only(bad()),
            Trust::Machine(bad()),
            Trust::MachineOrThemselves(bad()),
        ] {
            assert!(client(trust, None).is_err());
        }
    }
}
