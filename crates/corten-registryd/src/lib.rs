//! OCI registry server (distribution-spec)
