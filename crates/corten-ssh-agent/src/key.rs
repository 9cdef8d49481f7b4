//! A private key: read from the forms that OpenSSH and OpenSSL write, and used by `ring`, or by
//! `p521` on the curve that `ring` does not have.

use crypto_bigint::{BoxedUint, NonZero};
use p521::ecdsa::signature::Signer as _;
use p521::pkcs8::DecodePrivateKey as _;
use ring::rand::SystemRandom;
use ring::rsa::{KeyPairComponents, PublicKeyComponents};
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair,
    EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RSA_PKCS1_SHA512,
    RsaKeyPair,
};
use rustls_pki_types::pem::{PemObject as _, SectionKind};
use ssh_key::private::{EcdsaKeypair, KeypairData, RsaKeypair};
use ssh_key::public::{EcdsaPublicKey, Ed25519PublicKey, KeyData, RsaPublicKey};
use ssh_key::{Mpint, PrivateKey};

use crate::protocol::string;

/// Flags of a request to sign: which digest an RSA signature is of.
const RSA_SHA2_256: u32 = 2;
const RSA_SHA2_512: u32 = 4;

/// How keys begin that need a passphrase.
const ENCRYPTED: [&str; 2] = ["-----BEGIN ENCRYPTED PRIVATE KEY-----", "4,ENCRYPTED"];

/// Why there is no key.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// No form of a key that is known.
    #[error("ssh: no key found")]
    NoKey,
    /// It needs a passphrase.
    #[error(
        "ssh: this private key is passphrase protected: add it to an agent, and name its socket"
    )]
    Encrypted,
    /// It looks like one, but is damaged.
    #[error("ssh: invalid private key: {0}")]
    Invalid(String),
    /// A key of another kind.
    #[error(
        "ssh: {0} keys are not supported (ed25519, RSA of 2048 to 4096 bits, ECDSA with nistp256, nistp384 or nistp521 are)"
    )]
    Unsupported(String),
}

/// A key that signs.
#[derive(Debug)]
pub(crate) struct Key {
    secret: Secret,
    /// The public key as it is sent.
    blob: Vec<u8>,
}

#[derive(Debug)]
enum Secret {
    Ed25519(Ed25519KeyPair),
    Ecdsa(Curve, EcdsaKeyPair),
    P521(Box<p521::ecdsa::SigningKey>),
    Rsa(RsaKeyPair),
}

#[derive(Debug, Clone, Copy)]
enum Curve {
    P256,
    P384,
}

impl Curve {
    fn signing(self) -> &'static EcdsaSigningAlgorithm {
        match self {
            Self::P256 => &ECDSA_P256_SHA256_FIXED_SIGNING,
            Self::P384 => &ECDSA_P384_SHA384_FIXED_SIGNING,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::P256 => "ecdsa-sha2-nistp256",
            Self::P384 => "ecdsa-sha2-nistp384",
        }
    }
}

impl Key {
    /// Reads a file's content.
    pub(crate) fn parse(text: &[u8]) -> Result<Self, KeyError> {
        let words = String::from_utf8_lossy(text);
        if ENCRYPTED.iter().any(|sign| words.contains(sign)) {
            return Err(KeyError::Encrypted);
        }
        if words.contains("-----BEGIN OPENSSH PRIVATE KEY-----") {
            return Self::of_openssh(words.trim());
        }
        if words.contains("-----BEGIN DSA PRIVATE KEY-----") {
            return Err(KeyError::Unsupported("DSA".to_owned()));
        }
        match <(SectionKind, Vec<u8>)>::from_pem_slice(text) {
            Ok((SectionKind::RsaPrivateKey, der)) => {
                Self::new(Secret::Rsa(RsaKeyPair::from_der(&der).map_err(rsa)?))
            }
            Ok((SectionKind::EcPrivateKey, der)) => Self::of_sec1(&der),
            Ok((SectionKind::PrivateKey, der)) => Self::of_pkcs8(&der),
            _ => Err(KeyError::NoKey),
        }
    }

    fn of_openssh(text: &str) -> Result<Self, KeyError> {
        let key = PrivateKey::from_openssh(text).map_err(invalid)?;
        let secret = match key.key_data() {
            KeypairData::Encrypted(_) => return Err(KeyError::Encrypted),
            KeypairData::Ed25519(pair) => Secret::Ed25519(
                Ed25519KeyPair::from_seed_and_public_key(&pair.private.to_bytes(), &pair.public.0)
                    .map_err(invalid)?,
            ),
            KeypairData::Ecdsa(pair) => {
                let (private, public) = (pair.private_key_bytes(), pair.public_key_bytes());
                match pair {
                    EcdsaKeypair::NistP256 { .. } => ecdsa(Curve::P256, private, public)?,
                    EcdsaKeypair::NistP384 { .. } => ecdsa(Curve::P384, private, public)?,
                    EcdsaKeypair::NistP521 { .. } => p521(private, Some(public))?,
                }
            }
            KeypairData::Rsa(pair) => Secret::Rsa(rsa_pair(pair)?),
            other => {
                let name = other.algorithm().map(|name| name.to_string());
                return Err(KeyError::Unsupported(name.map_err(invalid)?));
            }
        };
        Self::new(secret)
    }

    fn of_sec1(der: &[u8]) -> Result<Self, KeyError> {
        let key = sec1::EcPrivateKey::try_from(der).map_err(invalid)?;
        let curve = key.parameters.and_then(|named| named.named_curve());
        let curve = match curve.map(|oid| oid.to_string()).as_deref() {
            Some("1.2.840.10045.3.1.7") => Curve::P256,
            Some("1.3.132.0.34") => Curve::P384,
            Some("1.3.132.0.35") => return Self::new(p521(key.private_key, key.public_key)?),
            other => {
                let other = other.unwrap_or("of no named curve");
                return Err(KeyError::Unsupported(format!("ECDSA ({other})")));
            }
        };
        let public = key.public_key;
        let public = public.ok_or_else(|| invalid("it is without its public key"))?;
        Self::new(ecdsa(curve, key.private_key, public)?)
    }

    /// PKCS #8 says of which kind a key is; each kind's reader refuses the others.
    fn of_pkcs8(der: &[u8]) -> Result<Self, KeyError> {
        let why = match Ed25519KeyPair::from_pkcs8_maybe_unchecked(der) {
            Ok(pair) => return Self::new(Secret::Ed25519(pair)),
            Err(error) => error,
        };
        match RsaKeyPair::from_pkcs8(der) {
            Ok(pair) => return Self::new(Secret::Rsa(pair)),
            // "WrongAlgorithm" of another kind, anything else of an RSA key.
            Err(error) if error.to_string() != why.to_string() => return Err(rsa(error)),
            Err(_) => {}
        }
        for curve in [Curve::P256, Curve::P384] {
            let random = SystemRandom::new();
            if let Ok(pair) = EcdsaKeyPair::from_pkcs8(curve.signing(), der, &random) {
                return Self::new(Secret::Ecdsa(curve, pair));
            }
        }
        if let Ok(key) = p521::ecdsa::SigningKey::from_pkcs8_der(der) {
            return Self::new(Secret::P521(Box::new(key)));
        }
        Err(invalid(why))
    }

    fn new(secret: Secret) -> Result<Self, KeyError> {
        let public = match &secret {
            Secret::Ed25519(pair) => {
                let bytes = pair.public_key().as_ref();
                KeyData::from(Ed25519PublicKey::try_from(bytes).map_err(invalid)?)
            }
            Secret::Ecdsa(_, pair) => {
                let bytes = pair.public_key().as_ref();
                KeyData::from(EcdsaPublicKey::from_sec1_bytes(bytes).map_err(invalid)?)
            }
            Secret::P521(key) => {
                let point = key.verifying_key().to_sec1_point(false);
                KeyData::from(EcdsaPublicKey::from_sec1_bytes(point.as_bytes()).map_err(invalid)?)
            }
            Secret::Rsa(pair) => {
                let parts = PublicKeyComponents::<Vec<u8>>::from(pair.public());
                let [e, n] = [&parts.e, &parts.n].map(|part| Mpint::from_positive_bytes(part));
                KeyData::from(RsaPublicKey::new(e, n).map_err(invalid)?)
            }
        };
        let blob = ssh_key::PublicKey::from(public).to_bytes();
        Ok(Self {
            secret,
            blob: blob.map_err(invalid)?,
        })
    }

    pub(crate) fn blob(&self) -> &[u8] {
        &self.blob
    }

    /// The signature as it is sent; none with SHA-1, which nobody takes any more.
    pub(crate) fn sign(&self, data: &[u8], flags: u32) -> Option<Vec<u8>> {
        let random = SystemRandom::new();
        let mut signed = Vec::new();
        let mut put = |name: &str, signature: &[u8]| {
            string(&mut signed, name.as_bytes());
            string(&mut signed, signature);
        };
        match &self.secret {
            Secret::Ed25519(pair) => put("ssh-ed25519", pair.sign(data).as_ref()),
            Secret::Ecdsa(curve, pair) => {
                let both = pair.sign(&random, data).ok()?;
                put(curve.name(), &numbers(both.as_ref()));
            }
            Secret::P521(key) => {
                let both: p521::ecdsa::Signature = key.try_sign(data).ok()?;
                put("ecdsa-sha2-nistp521", &numbers(&both.to_bytes()));
            }
            Secret::Rsa(pair) => {
                let (name, padding): (_, &dyn ring::signature::RsaEncoding) =
                    if flags & RSA_SHA2_512 != 0 {
                        ("rsa-sha2-512", &RSA_PKCS1_SHA512)
                    } else if flags & RSA_SHA2_256 != 0 {
                        ("rsa-sha2-256", &RSA_PKCS1_SHA256)
                    } else {
                        return None;
                    };
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(padding, &random, data, &mut signature).ok()?;
                put(name, &signature);
            }
        }
        Some(signed)
    }
}

/// The two numbers of an ECDSA signature as they are sent.
fn numbers(both: &[u8]) -> Vec<u8> {
    let (r, s) = both.split_at(both.len() / 2);
    let mut numbers = Vec::new();
    for number in [r, s] {
        string(&mut numbers, Mpint::from_positive_bytes(number).as_bytes());
    }
    numbers
}

/// A key whose public part, where it is told, has to be its own.
fn p521(private: &[u8], public: Option<&[u8]>) -> Result<Secret, KeyError> {
    let key = p521::ecdsa::SigningKey::from_slice(private).map_err(invalid)?;
    if let Some(public) = public {
        // Some tools write half of the point, which tells as much.
        let public = p521::ecdsa::VerifyingKey::from_sec1_bytes(public).map_err(invalid)?;
        if public != *key.verifying_key() {
            return Err(invalid("its public key is another's"));
        }
    }
    Ok(Secret::P521(Box::new(key)))
}

fn ecdsa(curve: Curve, private: &[u8], public: &[u8]) -> Result<Secret, KeyError> {
    if let [2 | 3, ..] = public {
        return Err(invalid(
            "its public key is compressed, which is read of nistp521 only \
             (openssl ec -conv_form uncompressed writes it in full)",
        ));
    }
    let random = SystemRandom::new();
    let pair =
        EcdsaKeyPair::from_private_key_and_public_key(curve.signing(), private, public, &random);
    Ok(Secret::Ecdsa(curve, pair.map_err(invalid)?))
}

/// OpenSSH leaves out two numbers that `ring` wants.
fn rsa_pair(pair: &RsaKeypair) -> Result<RsaKeyPair, KeyError> {
    let bytes = |number: &Mpint| {
        let bytes = number.as_positive_bytes().map(<[u8]>::to_vec);
        bytes.ok_or_else(|| invalid("a number is negative"))
    };
    let (public, private) = (pair.public(), pair.private());
    let (d, p, q) = (
        bytes(private.d())?,
        bytes(private.p())?,
        bytes(private.q())?,
    );
    let components = KeyPairComponents {
        public_key: PublicKeyComponents {
            n: bytes(public.n())?,
            e: bytes(public.e())?,
        },
        dP: exponent(&d, &p)?,
        dQ: exponent(&d, &q)?,
        d,
        p,
        q,
        qInv: bytes(private.iqmp())?,
    };
    RsaKeyPair::from_components(&components).map_err(rsa)
}

/// `d mod (prime - 1)`.
fn exponent(d: &[u8], prime: &[u8]) -> Result<Vec<u8>, KeyError> {
    let prime = BoxedUint::from_be_slice_vartime(prime);
    let one = BoxedUint::one_with_precision(prime.bits_precision());
    let below = NonZero::new(prime.wrapping_sub(&one)).into_option();
    let below = below.ok_or_else(|| invalid("a prime is 1"))?;
    let rest = BoxedUint::from_be_slice_vartime(d).rem(&below);
    Ok(rest.to_be_bytes_trimmed_vartime().into_vec())
}

fn invalid(why: impl std::fmt::Display) -> KeyError {
    KeyError::Invalid(why.to_string())
}

/// Why `ring` takes no RSA key: mostly its size.
fn rsa(error: ring::error::KeyRejected) -> KeyError {
    match error.to_string().as_str() {
        "TooSmall" => KeyError::Unsupported("RSA, shorter".to_owned()),
        "TooLarge" => KeyError::Unsupported("RSA, longer".to_owned()),
        other => invalid(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_point_is_its_own() {
        let numbers = [3, 4].map(|last| {
            let mut number = vec![0; 66];
            number[65] = last;
            number
        });
        let keys = numbers.each_ref().map(|number| {
            let key = p521::ecdsa::SigningKey::from_slice(number).unwrap();
            *key.verifying_key()
        });
        for half in [false, true] {
            let [own, other] = keys.map(|key| key.to_sec1_point(half));
            assert!(p521(&numbers[0], Some(own.as_bytes())).is_ok(), "{half}");
            let error = p521(&numbers[0], Some(other.as_bytes())).unwrap_err();
            assert!(error.to_string().contains("another's"), "{error}");
        }
        assert!(p521(&numbers[0], Some(&[2; 67])).is_err());
        let error = ecdsa(Curve::P256, &[3; 32], &[2; 33]).unwrap_err();
        assert!(error.to_string().contains("is compressed"), "{error}");
    }
}
