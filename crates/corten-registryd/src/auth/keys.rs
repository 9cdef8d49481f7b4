//! Public keys that tokens are checked with: PEM files (public keys or certificates) and JWK
//! sets (RFC 7517), and the key this server signs its own tokens with.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{self, EcdsaKeyPair, KeyPair as _, UnparsedPublicKey};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::error::{IoContext as _, RegistrydError};

/// A public key, and its name where it has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PublicKey {
    pub(crate) id: Option<String>,
    kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    /// Modulus and exponent, big-endian without leading zeros.
    Rsa {
        n: Vec<u8>,
        e: Vec<u8>,
    },
    /// Uncompressed points.
    P256(Vec<u8>),
    P384(Vec<u8>),
    Ed25519(Vec<u8>),
}

impl PublicKey {
    /// Whether the signature is this key's by the algorithm (RFC 7518 3.1, RFC 8037). A key
    /// serves only the algorithms of its kind: a token cannot choose a weaker one, nor none.
    pub(crate) fn verifies(&self, algorithm: &str, message: &[u8], signature: &[u8]) -> bool {
        let plain = |algorithm: &'static dyn signature::VerificationAlgorithm, key: &[u8]| {
            UnparsedPublicKey::new(algorithm, key)
                .verify(message, signature)
                .is_ok()
        };
        match &self.kind {
            Kind::Rsa { n, e } => {
                let parameters = match algorithm {
                    "RS256" => &signature::RSA_PKCS1_2048_8192_SHA256,
                    "RS384" => &signature::RSA_PKCS1_2048_8192_SHA384,
                    "RS512" => &signature::RSA_PKCS1_2048_8192_SHA512,
                    "PS256" => &signature::RSA_PSS_2048_8192_SHA256,
                    "PS384" => &signature::RSA_PSS_2048_8192_SHA384,
                    "PS512" => &signature::RSA_PSS_2048_8192_SHA512,
                    _ => return false,
                };
                signature::RsaPublicKeyComponents { n, e }
                    .verify(parameters, message, signature)
                    .is_ok()
            }
            Kind::P256(point) if algorithm == "ES256" => {
                plain(&signature::ECDSA_P256_SHA256_FIXED, point)
            }
            Kind::P384(point) if algorithm == "ES384" => {
                plain(&signature::ECDSA_P384_SHA384_FIXED, point)
            }
            Kind::Ed25519(key) if algorithm == "EdDSA" => plain(&signature::ED25519, key),
            Kind::P256(_) | Kind::P384(_) | Kind::Ed25519(_) => false,
        }
    }

    /// Reads a SubjectPublicKeyInfo (RFC 5280 4.1).
    fn from_spki(spki: &[u8]) -> Option<Self> {
        /// rsaEncryption, id-ecPublicKey with its two curves, id-Ed25519.
        const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
        const EC: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
        const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
        const P384: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x22];
        const ED25519: &[u8] = &[0x2b, 0x65, 0x70];

        let (mut outer, _) = der(spki, SEQUENCE)?;
        let (mut algorithm, rest) = der(outer, SEQUENCE)?;
        outer = rest;
        let (bits, _) = der(outer, BIT_STRING)?;
        // The count of unused bits comes first; keys are whole bytes.
        let key = bits.strip_prefix(&[0])?;
        let (oid, rest) = der(algorithm, OID)?;
        algorithm = rest;
        let kind = match oid {
            RSA => {
                let (numbers, _) = der(key, SEQUENCE)?;
                let (n, numbers) = der(numbers, INTEGER)?;
                let (e, _) = der(numbers, INTEGER)?;
                Kind::Rsa {
                    n: unpadded(n),
                    e: unpadded(e),
                }
            }
            EC => match der(algorithm, OID)?.0 {
                P256 => Kind::P256(key.to_vec()),
                P384 => Kind::P384(key.to_vec()),
                _ => return None,
            },
            ED25519 => Kind::Ed25519(key.to_vec()),
            _ => return None,
        };
        Some(Self { id: None, kind })
    }
}

const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OID: u8 = 0x06;
const SEQUENCE: u8 = 0x30;

/// The content of the DER element in front, if it has this tag, and what follows it.
fn der(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (found, rest) = bytes.split_first()?;
    let (first, rest) = rest.split_first()?;
    if *found != tag {
        return None;
    }
    let (length, rest) = match first {
        0..=0x7f => (usize::from(*first), rest),
        0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            let length = digits
                .iter()
                .fold(0, |sum, byte| sum << 8 | usize::from(*byte));
            (length, rest)
        }
        _ => return None,
    };
    rest.split_at_checked(length)
}

fn unpadded(number: &[u8]) -> Vec<u8> {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    number[zeros..].to_vec()
}

/// Keys of all these files.
pub(crate) fn load(paths: &[PathBuf]) -> Result<Vec<PublicKey>, RegistrydError> {
    let mut keys = Vec::new();
    for path in paths {
        keys.extend(file(path)?);
    }
    Ok(keys)
}

fn file(path: &Path) -> Result<Vec<PublicKey>, RegistrydError> {
    let bad = |reason: &str| RegistrydError::Key {
        path: path.to_owned(),
        reason: reason.to_owned(),
    };
    let bytes = fs::read(path).context("read the token key", path)?;
    let keys = if bytes.trim_ascii_start().starts_with(b"{") {
        jwks(&bytes).map_err(|error| bad(&format!("not a JWK set: {error}")))?
    } else {
        pem(&bytes).ok_or_else(|| bad("a PEM block is no RSA, P-256, P-384 or Ed25519 key"))?
    };
    if keys.is_empty() {
        return Err(bad(
            "no key in it (expected PEM public keys or certificates, or a JWK set)",
        ));
    }
    Ok(keys)
}

fn pem(bytes: &[u8]) -> Option<Vec<PublicKey>> {
    let mut keys = Vec::new();
    for spki in SubjectPublicKeyInfoDer::pem_slice_iter(bytes) {
        keys.push(PublicKey::from_spki(spki.ok()?.as_ref())?);
    }
    for certificate in CertificateDer::pem_slice_iter(bytes) {
        let certificate = certificate.ok()?;
        let parsed = rustls::server::ParsedCertificate::try_from(&certificate).ok()?;
        keys.push(PublicKey::from_spki(
            parsed.subject_public_key_info().as_ref(),
        )?);
    }
    Some(keys)
}

/// Keys of a set; those of kinds we do not know, or for encryption, are left out.
fn jwks(bytes: &[u8]) -> serde_json::Result<Vec<PublicKey>> {
    #[derive(Deserialize)]
    struct Set {
        keys: Vec<Jwk>,
    }
    #[derive(Deserialize)]
    struct Jwk {
        kty: String,
        kid: Option<String>,
        #[serde(rename = "use")]
        purpose: Option<String>,
        crv: Option<String>,
        n: Option<String>,
        e: Option<String>,
        x: Option<String>,
        y: Option<String>,
    }
    let number = |text: &Option<String>| URL_SAFE_NO_PAD.decode(text.as_deref()?).ok();
    let kind = |jwk: &Jwk| {
        let point = |size| {
            let (x, y) = (number(&jwk.x)?, number(&jwk.y)?);
            (x.len() == size && y.len() == size).then(|| [&[4], &x[..], &y[..]].concat())
        };
        match (jwk.kty.as_str(), jwk.crv.as_deref()) {
            ("RSA", _) => Some(Kind::Rsa {
                n: unpadded(&number(&jwk.n)?),
                e: unpadded(&number(&jwk.e)?),
            }),
            ("EC", Some("P-256")) => point(32).map(Kind::P256),
            ("EC", Some("P-384")) => point(48).map(Kind::P384),
            ("OKP", Some("Ed25519")) => number(&jwk.x).map(Kind::Ed25519),
            _ => None,
        }
    };
    let set: Set = serde_json::from_slice(bytes)?;
    let usable = set
        .keys
        .iter()
        .filter(|jwk| jwk.purpose.as_deref() != Some("enc"))
        .filter_map(|jwk| {
            Some(PublicKey {
                id: jwk.kid.clone(),
                kind: kind(jwk)?,
            })
        });
    Ok(usable.collect())
}

/// What signs this server's own tokens (ES256).
pub(crate) struct SigningKey {
    pair: EcdsaKeyPair,
    public: PublicKey,
    random: SystemRandom,
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SigningKey")
            .field("public", &self.public)
            .finish_non_exhaustive()
    }
}

impl SigningKey {
    /// Reads the key (PEM, PKCS #8, P-256), and makes it first if `make` and it is missing.
    /// Replicas of one registry have the same.
    pub(crate) fn open(path: &Path, make: bool) -> Result<Self, RegistrydError> {
        let bad = |reason: String| RegistrydError::Key {
            path: path.to_owned(),
            reason,
        };
        let random = SystemRandom::new();
        if make && !path.try_exists().context("look for", path)? {
            let made =
                EcdsaKeyPair::generate_pkcs8(&signature::ECDSA_P256_SHA256_FIXED_SIGNING, &random)
                    .map_err(|_| bad("the system gives no random numbers".to_owned()))?;
            create(path, made.as_ref())?;
        }
        let der = PrivatePkcs8KeyDer::from_pem_file(path)
            .map_err(|error| bad(format!("no PKCS #8 private key in PEM: {error}")))?;
        let pair = EcdsaKeyPair::from_pkcs8(
            &signature::ECDSA_P256_SHA256_FIXED_SIGNING,
            der.secret_pkcs8_der(),
            &random,
        )
        .map_err(|error| bad(format!("no P-256 private key: {error}")))?;
        let point = pair.public_key().as_ref().to_vec();
        let id = hex::encode(&Sha256::digest(&point)[..8]);
        let public = PublicKey {
            id: Some(id),
            kind: Kind::P256(point),
        };
        Ok(Self {
            pair,
            public,
            random,
        })
    }

    pub(crate) fn public(&self) -> &PublicKey {
        &self.public
    }

    pub(crate) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, RegistrydError> {
        let signed = self.pair.sign(&self.random, message);
        let signed =
            signed.map_err(|_| RegistrydError::Internal("cannot sign a token".to_owned()))?;
        Ok(signed.as_ref().to_vec())
    }
}

/// Writes a new private key so that it appears whole; another server's wins a race.
fn create(path: &Path, pkcs8: &[u8]) -> Result<(), RegistrydError> {
    let body = base64::engine::general_purpose::STANDARD.encode(pkcs8);
    let mut text = String::from("-----BEGIN PRIVATE KEY-----\n");
    for line in body.as_bytes().chunks(64) {
        text.push_str(&String::from_utf8_lossy(line));
        text.push('\n');
    }
    text.push_str("-----END PRIVATE KEY-----\n");
    let folder = path.parent().unwrap_or(Path::new("."));
    let temporary = folder.join(format!(".token-key.{}", std::process::id()));
    let written = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            match fs::hard_link(&temporary, path) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
                other => other,
            }
        });
    // Its second name, or what is of no use.
    let _ = fs::remove_file(&temporary);
    written.context("write the token key", path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn der_that_lies_about_its_length_is_refused() {
        for bytes in [
            &[][..],
            &[0x30],
            &[0x30, 0x05, 0x00],
            &[0x30, 0x84, 0xff, 0xff, 0xff, 0xff],
            &[0x30, 0x80],
            &[0x02, 0x00],
        ] {
            assert!(PublicKey::from_spki(bytes).is_none(), "{bytes:?}");
        }
    }

    #[test]
    fn a_made_key_signs_what_its_public_half_verifies() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token-key.pem");
        assert!(SigningKey::open(&path, false).is_err());
        let key = SigningKey::open(&path, true).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let again = SigningKey::open(&path, true).unwrap();
        assert_eq!(key.public(), again.public());
        let signature = key.sign(b"text").unwrap();
        assert!(again.public().verifies("ES256", b"text", &signature));
        for (algorithm, text) in [("ES256", b"test"), ("RS256", b"text"), ("none", b"text")] {
            assert!(!again.public().verifies(algorithm, text, &signature));
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn reads_pem_and_jwk_sets() {
        let folder = tempfile::tempdir().unwrap();
        let read = |text: &str| {
            let path = folder.path().join("key");
            fs::write(&path, text).unwrap();
            file(&path)
        };
        // The test certificate holds a P-256 key.
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        let certificate = fs::read_to_string(fixtures.join("test-cert.pem")).unwrap();
        let keys = read(&certificate).unwrap();
        let [
            PublicKey {
                kind: Kind::P256(point),
                ..
            },
        ] = keys.as_slice()
        else {
            panic!("{keys:?}");
        };
        let coordinate = |range: std::ops::Range<usize>| URL_SAFE_NO_PAD.encode(&point[range]);
        let set = serde_json::json!({"keys": [
            {"kty": "EC", "crv": "P-256", "kid": "a", "x": coordinate(1..33), "y": coordinate(33..65)},
            {"kty": "oct", "k": "AA"},
            {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"},
        ]});
        let keys_of_set = read(&set.to_string()).unwrap();
        assert_eq!(keys_of_set.len(), 1);
        assert_eq!(keys_of_set[0].id.as_deref(), Some("a"));
        assert_eq!(keys_of_set[0].kind, keys[0].kind);
        for bad in ["", "text", "{}", "{\"keys\":[]}"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
