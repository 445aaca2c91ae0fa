//! The command: parse, call, print the error, exit.

use std::process::ExitCode;

use clap::Parser;
use swiftnbd::cli::Cli;
use swiftnbd::compat::Invocation;
use swiftnbd::control;
use swiftnbd::error::{Exit, Result};

fn main() -> ExitCode {
    if let Some(original) = Invocation::of_this_process() {
        // It knew one status for all errors.
        return end(original.program(), control::original::run(&original), |_| 1);
    }
    let verb = std::env::args_os().nth(1);
    let result = if verb.is_some_and(|verb| verb == control::guardian::VERB) {
        control::guardian::run()
    } else {
        control::run(&Cli::parse())
    };
    end("swiftnbd", result, |exit| exit as u8)
}

fn end(program: &str, result: Result<()>, status: impl Fn(Exit) -> u8) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{program}: {error}");
            ExitCode::from(status(error.exit))
        }
    }
}
