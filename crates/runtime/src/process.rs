//! What this process does when the system signals it.

/// Ends the process quietly when the reader of its output has gone (`danaus inspect M | head`), as other
/// command-line tools do, instead of failing at the next line it prints. Does nothing where there are no
/// such signals.
pub fn end_with_the_reader() {
    #[cfg(unix)]
    // SAFETY: sets the default action of one signal; no handler of ours is involved.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
}
