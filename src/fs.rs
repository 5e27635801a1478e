//! Writes files so that a crash leaves the old or the new content, never a part; and reads the free space.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

/// Extension of files that are being written. A crash may leave such files.
const TEMPORARY_EXTENSION: &str = "tmp";

/// Replaces a file: writes a temporary file beside it, syncs it and renames it. Removes the temporary file after an
/// error. [`sync_directory`] makes the renaming durable.
///
/// # Errors
/// Those of the operating system; the file is unchanged then.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension(TEMPORARY_EXTENSION);
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    let written = write();
    if written.is_err() {
        // The first error is the one to report. The removal may free the space that was missing.
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

/// Makes the creation, renaming and removal of files in a directory durable.
///
/// # Errors
/// Those of the operating system.
pub fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Bytes that a process without privileges can still write to the file system of a path.
///
/// # Errors
/// Those of the operating system.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}
