//! `ckrv-adapter-encode MODULE COMPONENT`: a core module, with the types that wit-bindgen put into it, to a component. Runs on the
//! machine that builds, and is here so that it is pinned together with wit-bindgen.

use std::process::ExitCode;

use wit_component::ComponentEncoder;

fn encode(module: &str, component: &str) -> Result<(), Box<dyn std::error::Error>> {
    let module = std::fs::read(module)?;
    let bytes = ComponentEncoder::default().validate(true).module(&module)?.encode()?;
    std::fs::write(component, bytes)?;
    Ok(())
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let result = match args.as_slice() {
        [module, component] => encode(module, component),
        _ => Err("usage: ckrv-adapter-encode MODULE COMPONENT".into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ckrv-adapter-encode: {error:#}");
            ExitCode::FAILURE
        }
    }
}
