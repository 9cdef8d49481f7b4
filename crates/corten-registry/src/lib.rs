//! OCI registry client: authentication, pull, push, mirrors
