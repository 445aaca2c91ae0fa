//! The command: parse, call, print the error, exit.

use std::process::ExitCode;

use clap::Parser;
use swiftnbd::cli::Cli;
use swiftnbd::control;

fn main() -> ExitCode {
    let verb = std::env::args_os().nth(1);
    let result = if verb.is_some_and(|verb| verb == control::guardian::VERB) {
        control::guardian::run()
    } else {
        control::run(&Cli::parse())
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("swiftnbd: {error}");
            ExitCode::from(error.exit as u8)
        }
    }
}
