//! How many files clients make in a second in one directory, beside as many clients with a directory each. Every
//! client is an incarnation of its own with its own connections; none keeps anything in a cache.
//!
//! `cargo run --release -p kiln-client --example one_directory -- MANAGER CREDENTIAL [CLIENTS [SECONDS]]`
//!
//! MANAGER is HOST:PORT, CREDENTIAL the file of a credential for the whole file system: `kiln status` shows the
//! one, and the cluster's directory has the other under `credentials/`.

use kiln_client::{Client, NewFile, OpenMode, Options};
use kiln_env::Env;
use kiln_types::{Caller, Error, InodeId, Result};
use std::sync::Arc;
use std::time::Duration;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [manager, credential, rest @ ..] = &args[..] else {
        return Err(Error::invalid("MANAGER and CREDENTIAL are wanted"));
    };
    let number = |at: usize, default| match rest.get(at).map(|text| text.parse()) {
        None => Ok(default),
        Some(number) => number.map_err(|_| Error::invalid("CLIENTS and SECONDS are numbers")),
    };
    let (count, seconds) = (number(0, 64_u64)?, number(1, 5)?);
    let credential = kiln_config::read_credential(credential.as_ref())?;
    let runtime = tokio::runtime::Runtime::new();
    let runtime = runtime.map_err(|error| Error::local("the runtime", &error))?;
    runtime.block_on(async {
        let env = Env::real();
        let mut clients = Vec::new();
        for _ in 0..count {
            let managers = vec![manager.clone()];
            let connecting =
                Client::connect(&env, managers, credential.clone(), Options::default());
            clients.push(Arc::new(connecting.await?));
        }
        let time = Duration::from_secs(seconds);
        let (own, first) = measure(&env, &clients, time, false).await?;
        let (shared, second) = measure(&env, &clients, time, true).await?;
        for name in [first, second] {
            let name = name.as_bytes();
            clients[0].remove_tree(&Caller::root(), InodeId::ROOT, name, true).await?;
        }
        println!("{count} clients in directories of their own: {own:.0} files/s");
        println!("{count} clients in one directory:            {shared:.0} files/s");
        println!("ratio: {:.2}", shared / own);
        Ok(())
    })
}

/// Files for each second, and the name of the directory in which they are.
async fn measure(
    env: &Env,
    clients: &[Arc<Client>],
    time: Duration,
    shared: bool,
) -> Result<(f64, String)> {
    let caller = Caller::root();
    let name = format!("one-directory-{:016x}", env.random_u64());
    let top = clients[0].make_dir(&caller, InodeId::ROOT, name.as_bytes(), 0o700).await?.inode;
    let (begun, env_for_tasks, mut tasks) = (env.now(), env.clone(), Vec::new());
    for (number, client) in clients.iter().enumerate() {
        let (env, client) = (env.clone(), Arc::clone(client));
        let work = async move { make_files(&env, &client, (top, number), time, shared).await };
        tasks.push(env_for_tasks.spawn("client", work));
    }
    let mut made = 0;
    for task in tasks {
        made += task.join().await??;
    }
    let rate = made as f64 / env.now().since(begun).as_secs_f64();
    Ok((rate, name))
}

async fn make_files(
    env: &Env,
    client: &Client,
    (top, number): (InodeId, usize),
    time: Duration,
    shared: bool,
) -> Result<u64> {
    let caller = Caller::root();
    let parent = match shared {
        true => top,
        false => client.make_dir(&caller, top, number.to_string().as_bytes(), 0o700).await?.inode,
    };
    let (begun, mut made) = (env.now(), 0);
    while env.now().since(begun) < time {
        let name = format!("{number}-{made}");
        let open = OpenMode::EDIT;
        let new = NewFile { parent, name: name.as_bytes(), mode: 0o600, exclusive: true, open };
        client.create(&caller, &new).await?.close().await?;
        made += 1;
    }
    Ok(made)
}
