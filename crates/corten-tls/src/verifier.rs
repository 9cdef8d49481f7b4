//! Ways to look at a certificate that rustls does not have.

use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use rustls_platform_verifier::Verifier;

/// Believes any certificate.
#[derive(Debug)]
pub(crate) struct Any(pub(crate) Arc<CryptoProvider>);

impl ServerCertVerifier for Any {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let known = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, cert, signed, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let known = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, cert, signed, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Believes what the machine's verifier does, with more authorities. The machine's own, hundreds of
/// files, are read only when there is a certificate to look at: a peer that does not speak TLS shows
/// none.
#[derive(Debug)]
pub(crate) struct Machine {
    /// Looks at signatures, for which no authority is needed.
    any: Any,
    more: Vec<CertificateDer<'static>>,
    usual: Kept<Verifier>,
}

impl Machine {
    /// # Errors
    /// One of `more` cannot be used.
    pub(crate) fn new(
        provider: Arc<CryptoProvider>,
        more: Vec<CertificateDer<'static>>,
    ) -> Result<Self, Error> {
        // Said now, not at the first handshake.
        let mut roots = RootCertStore::empty();
        for authority in &more {
            roots.add(authority.clone())?;
        }
        Ok(Self {
            any: Any(provider),
            more,
            usual: Kept::default(),
        })
    }

    fn usual(&self) -> Result<Arc<Verifier>, Error> {
        self.usual.get(|| {
            let (more, provider) = (self.more.clone(), self.any.0.clone());
            Verifier::new_with_extra_roots(more, provider)
        })
    }
}

/// What is made when it is first asked for, and kept once that has worked: for want of descriptors,
/// say, it may not.
#[derive(Debug)]
struct Kept<T>(Mutex<Option<Arc<T>>>);

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Kept<T> {
    fn get<E>(&self, make: impl FnOnce() -> Result<T, E>) -> Result<Arc<T>, E> {
        // Held meanwhile: who comes second would otherwise make another.
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept) = &*kept {
            return Ok(kept.clone());
        }
        let made = Arc::new(make()?);
        *kept = Some(made.clone());
        Ok(made)
    }
}

impl ServerCertVerifier for Machine {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let usual = self.usual()?;
        usual.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.any.verify_tls12_signature(message, cert, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.any.verify_tls13_signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.any.supported_verify_schemes()
    }
}

/// Believes what the machine's verifier does, and its further authorities as servers.
#[derive(Debug)]
pub(crate) struct Trusted(pub(crate) Machine);

impl ServerCertVerifier for Trusted {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified =
            self.0
                .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match verified {
            // Said after its time was found right, and before its name is looked at.
            Err(error)
                if is_of_an_authority(&error) && self.0.more.iter().any(|a| a == end_entity) =>
            {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, cert, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// Whether a certificate is refused only since it is an authority's and a server shows it.
fn is_of_an_authority(error: &Error) -> bool {
    let Error::InvalidCertificate(rustls::CertificateError::Other(why)) = error else {
        return false;
    };
    format!("{why:?}").contains("CaUsedAsEndEntity")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_worked_is_kept() {
        let kept = Kept::default();
        assert_eq!(
            kept.get(|| Err("too many open files")),
            Err("too many open files")
        );
        assert_eq!(kept.get(|| Ok::<_, &str>(1)), Ok(Arc::new(1)));
        assert_eq!(kept.get(|| Err("asked again")), Ok(Arc::new(1)));
    }
}
