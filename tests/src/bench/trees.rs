//! Trees to read nars from, and reading them as plainly as can be.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Octets that are read at once: those of a piece.
const BUFFER_BYTES: usize = 256 * 1024;

/// Makes `folders` × `files` files of `size` octets each, of noise.
///
/// # Errors
/// What the file system says.
pub fn make(root: &Path, folders: usize, files: usize, size: usize) -> io::Result<()> {
    let mut random = StdRng::seed_from_u64((folders * files + size) as u64);
    let mut content = vec![0; size];
    for folder in 0..folders {
        let folder = root.join(format!("folder-{folder:04}"));
        fs::create_dir_all(&folder)?;
        for file in 0..files {
            random.fill_bytes(&mut content);
            fs::write(folder.join(format!("file-{file:04}")), &content)?;
        }
    }
    Ok(())
}

/// The files of a tree, in the order of its nar.
///
/// # Errors
/// What the file system says.
pub fn files(root: &Path) -> io::Result<Vec<PathBuf>> {
    let mut entries = fs::read_dir(root)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<io::Result<Vec<_>>>()?;
    entries.sort();
    let mut found = Vec::new();
    for entry in entries {
        if entry.is_dir() {
            found.extend(files(&entry)?);
        } else {
            found.push(entry);
        }
    }
    Ok(found)
}

/// Reads files one after the other into one buffer; octets read.
///
/// # Errors
/// What the file system says.
pub fn read_plainly(files: &[PathBuf]) -> io::Result<u64> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut total = 0;
    for file in files {
        let mut file = File::open(file)?;
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                octets => total += octets as u64,
            }
        }
    }
    Ok(total)
}

/// Has the kernel forget what it holds of these files in memory.
///
/// # Errors
/// What the file system says.
pub fn forget(files: &[PathBuf]) -> io::Result<()> {
    rustix::fs::sync();
    for file in files {
        rustix::fs::fadvise(File::open(file)?, 0, None, rustix::fs::Advice::DontNeed)?;
    }
    Ok(())
}
