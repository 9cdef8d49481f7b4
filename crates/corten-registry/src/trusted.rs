//! Which certificates a registry may show, where authorities are configured for it.
//!
//! As Go has it, a certificate that is trusted may be a server's own: `openssl req -x509` makes
//! one that says it is an authority, and Docker's manual tells to use it for both. It is taken if
//! it is one of those configured, byte for byte, and its time and name are right.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use rustls_platform_verifier::Verifier;

/// What a connection needs that trusts these authorities, and the host's; in PEM the certificate
/// and key to show.
pub(crate) fn config(
    authorities: Vec<CertificateDer<'static>>,
    identity: Option<&[u8]>,
) -> Result<ClientConfig, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let usual = Verifier::new_with_extra_roots(authorities.clone(), provider.clone())?;
    let verifier = Trusted { authorities, usual };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match identity {
        Some(pem) => {
            let bad = |error: rustls::pki_types::pem::Error| Error::General(error.to_string());
            let chain = CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>();
            let key = PrivateKeyDer::from_pem_slice(pem).map_err(bad)?;
            builder.with_client_auth_cert(chain.map_err(bad)?, key)?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

#[derive(Debug)]
struct Trusted {
    authorities: Vec<CertificateDer<'static>>,
    usual: Verifier,
}

impl ServerCertVerifier for Trusted {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.usual.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        match verified {
            // Said after its time was found right, and before its name is looked at.
            Err(error)
                if is_of_an_authority(&error)
                    && self.authorities.iter().any(|a| a == end_entity) =>
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
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.usual.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.usual.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.usual.supported_verify_schemes()
    }
}

/// Whether a certificate is refused only since it is an authority's and a server shows it.
fn is_of_an_authority(error: &Error) -> bool {
    let Error::InvalidCertificate(rustls::CertificateError::Other(why)) = error else {
        return false;
    };
    format!("{why:?}").contains("CaUsedAsEndEntity")
}
