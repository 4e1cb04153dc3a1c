//! What a person reads on standard output and standard error, and what happens if nothing reads it.
//!
//! [`outln!`] prints a command's answer to standard output: if the reader closes the pipe, as `head` does, the command
//! ends quietly. A server's lines ([`announce!`]) and notes on standard error ([`note!`]) must never end a process: if
//! the disk is full or the reader has died, the line is dropped and the work continues.

use std::fmt::Arguments;
use std::io::{ErrorKind, Write, stderr, stdout};

/// Prints a part of a command's answer.
macro_rules! out {
    ($($text:tt)*) => { $crate::output::print(format_args!($($text)*)) };
}

/// Prints a line of a command's answer.
macro_rules! outln {
    () => { $crate::output::print(format_args!("\n")) };
    ($($text:tt)*) => { $crate::output::print(format_args!("{}\n", format_args!($($text)*))) };
}

/// Prints a line of a server on standard output, if anything reads it.
macro_rules! announce {
    ($($text:tt)*) => { $crate::output::write_announcement(format_args!($($text)*)) };
}

/// Prints a line on standard error, if anything reads it.
macro_rules! note {
    ($($text:tt)*) => { $crate::output::write_note(format_args!($($text)*)) };
}

pub(crate) use {announce, note, out, outln};

/// Prints a part of a command's answer; ends the process if that fails.
pub(crate) fn print(text: Arguments<'_>) {
    if let Err(error) = stdout().lock().write_fmt(text) {
        stop(&error);
    }
}

/// Ends the process because its answer cannot be written: quietly if the reader has closed the pipe.
pub(crate) fn stop(error: &std::io::Error) -> ! {
    if error.kind() == ErrorKind::BrokenPipe {
        std::process::exit(0);
    }
    write_note(format_args!("sightline: write to standard output: {error}"));
    std::process::exit(1);
}

/// Prints a line of a server.
pub(crate) fn write_announcement(text: Arguments<'_>) {
    let mut out = stdout().lock();
    // Nothing depends on this line.
    drop(out.write_fmt(format_args!("{text}\n")).and_then(|()| out.flush()));
}

/// Prints a line on standard error.
pub(crate) fn write_note(text: Arguments<'_>) {
    // One write for the whole line, so that lines of several processes do not mix.
    drop(stderr().lock().write_all(format!("{text}\n").as_bytes()));
}
