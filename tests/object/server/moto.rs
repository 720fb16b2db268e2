//! moto's server: another make of S3, which keeps everything in its memory.

use std::net::TcpListener;

use super::*;

pub(super) fn start(folder: TempDir, tls: bool) -> Result<Server, String> {
    let program = packages::program("moto[server]", "moto_server")?;
    let python = program.with_file_name("python");
    let listener = TcpListener::bind(("127.0.0.1", 0)).map_err(told)?;
    let port = listener.local_addr().map_err(told)?.port();
    let mut command = Command::new(&program);
    command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
    if tls {
        let (certificate, key) = certificates::make(folder.path())?;
        command.arg("-c").arg(certificate).arg("-k").arg(key);
    }
    drop(listener);
    let child = launch(&mut command, folder.path())?;
    let make = if tls { Make::MotoTls } else { Make::Moto };
    Ok(Server { child, folder, port, make, admin: Admin::Boto { python } })
}

const SCRIPT: &str = "\
import boto3, sys
endpoint, authority, bucket, there = sys.argv[1:]
s3 = boto3.client('s3', endpoint_url=endpoint, verify=authority or None, region_name='us-east-1',
                  aws_access_key_id='kvdtest', aws_secret_access_key='kvdtestsecret')
if there == 'true':
    s3.create_bucket(Bucket=bucket)
else:
    for page in s3.get_paginator('list_objects_v2').paginate(Bucket=bucket):
        for found in page.get('Contents', []):
            s3.delete_object(Bucket=bucket, Key=found['Key'])
    s3.delete_bucket(Bucket=bucket)
";

/// One try; the inner result says whether it is so now.
pub(super) fn administer(python: &Path, server: &Server, there: bool) -> Result<Result<(), String>, String> {
    let authority = match server.make {
        Make::MotoTls => server.authority().display().to_string(),
        Make::SeaweedFs | Make::Moto => String::new(),
    };
    let mut command = Command::new(python);
    command.args(["-c", SCRIPT, &server.endpoint(), &authority, Server::BUCKET, &there.to_string()]);
    let said = command.stdin(Stdio::null()).output().map_err(told)?;
    let why = || String::from_utf8_lossy(&said.stderr).lines().last().unwrap_or_default().to_owned();
    Ok(if said.status.success() { Ok(()) } else { Err(why()) })
}
