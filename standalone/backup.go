package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.uber.org/zap"
)

// backup writes a snapshot of the store to a file, as etcdctl snapshot save would: from the running server if there is
// one, else from the store at rest.
func backup(ctx context.Context, dir, file string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	// A mistyped --data-dir shall not be made.
	if _, err := os.Stat(filepath.Join(dir, etcdDirName)); err != nil {
		return fmt.Errorf("no server has run on data directory %s yet: %w", dir, err)
	}
	d, err := openDataDir(dir)
	switch {
	case errors.Is(err, errInUse):
		d = &dataDir{path: dir} // the server's own etcd is asked
	case err != nil:
		return err
	default:
		defer d.Close()
		etcd, err := startEtcd(d)
		if err != nil {
			return err
		}
		defer stopEtcd(etcd)
	}
	manager := snapshot.NewV3(zap.NewNop())
	if _, err := manager.Save(ctx, d.etcdClient(), file); err != nil {
		return fmt.Errorf("backup to %s: %w", file, err)
	}
	if err := syncDir(filepath.Dir(file)); err != nil {
		return err
	}
	status, err := manager.Status(file)
	if err != nil {
		return fmt.Errorf("backup %s cannot be read back: %w", file, err)
	}
	fmt.Printf("backup of %s at revision %d: %s (%d keys, %d bytes)\n", dir, status.Revision, file, status.TotalKey, status.TotalSize)
	return nil
}
