package main

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
)

const (
	etcdDirName = "etcd"
	// etcdStartTimeout is long: after a kill the write-ahead log is replayed first.
	etcdStartTimeout = 2 * time.Minute
)

// startEtcd runs etcd on the store in the data directory. It listens on a unix socket there and nowhere else: there
// are no peers.
func startEtcd(d *dataDir) (*embed.Etcd, error) {
	socket := d.etcdSocket()
	// One left by a killed process; the lock on the directory says that nobody uses it.
	if err := os.Remove(socket); err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	config := embed.NewConfig()
	config.Dir = d.file(etcdDirName)
	config.ListenClientUrls = []url.URL{{Scheme: "unix", Path: socket}}
	config.AdvertiseClientUrls = config.ListenClientUrls
	config.ListenPeerUrls = nil
	config.EnableGRPCGateway = false
	config.LogLevel = "error"
	config.LogOutputs = []string{"stderr"}
	config.QuotaBackendBytes = 8 << 30
	// The API server compacts every five minutes, which frees pages but never shrinks the file.
	config.BootstrapDefragThresholdMegabytes = 256
	etcd, err := embed.StartEtcd(config)
	if err != nil {
		return nil, fmt.Errorf("etcd: %w", err)
	}
	select {
	case <-etcd.Server.ReadyNotify():
		return etcd, nil
	case err = <-etcd.Err():
	case <-time.After(etcdStartTimeout):
		err = fmt.Errorf("not ready after %s", etcdStartTimeout)
	}
	stopEtcd(etcd)
	return nil, fmt.Errorf("etcd: %w", err)
}

// stopEtcd stops the store but leaves the socket to the end of the process: etcd's own Close waits seconds for the API
// server's connections, which nobody needs any more.
func stopEtcd(etcd *embed.Etcd) { etcd.Server.Stop() }

// etcdSocket lies in a directory that nobody else may enter: etcd asks its clients for nothing.
func (d *dataDir) etcdSocket() string { return filepath.Join(d.file("run"), "etcd.sock") }

func (d *dataDir) etcdEndpoint() string { return "unix://" + d.etcdSocket() }

func (d *dataDir) etcdClient() clientv3.Config {
	return clientv3.Config{Endpoints: []string{d.etcdEndpoint()}, DialTimeout: 5 * time.Second}
}
