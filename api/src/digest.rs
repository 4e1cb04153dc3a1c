//! Checksums as they are shown and stored.

use sha2::{Digest, Sha256};

/// SHA-256 as 64 hexadecimal digits.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
