//! OCI vocabulary shared by every crate: image references (normalised exactly as
//! the `docker` command does), digests, layer identities, platforms, media types,
//! and re-exports of the `oci-spec` document types.
//!
//! Everything here is pure: text in, values out. Parse at the edge, once; below
//! the edge only these types travel.

pub mod digest;
pub mod media_type;
pub mod platform;
mod printable;
pub mod reference;

pub use digest::{ChainId, DiffId, Digest, DigestError, Digester};
pub use oci_spec;
pub use oci_spec::image as image_spec;
pub use oci_spec::runtime as runtime_spec;
pub use platform::{Platform, PlatformError};
pub use printable::Printable;
pub use reference::{ImageRef, ReferenceError};
