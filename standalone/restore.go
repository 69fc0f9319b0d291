package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

const (
	// restoredDirName holds a complete store that replaces the present one when the server starts; a running server
	// that sees it starts itself anew. From the moment it appears the restore will happen, whatever is killed.
	restoredDirName = "etcd.restored"
	// revisionMargin is more writes than can happen between asking for the present revision and the restart.
	revisionMargin = 1_000_000_000
)

// restore replaces the store by a snapshot. Clients may know revisions that are younger than the snapshot, so the
// restored store continues above all of them and calls everything before compacted: a watch or list from before the
// restore gets 410 Gone instead of other contents under a revision it knows.
func restore(ctx context.Context, dir, file string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	d, err := openDataDir(dir)
	if errors.Is(err, errInUse) {
		return restoreRunning(ctx, &dataDir{path: dir}, file)
	} else if err != nil {
		return err
	}
	defer d.Close()
	if err := d.prepareRestore(file, d.revisionAtRest()); err != nil {
		return err
	}
	return d.finishRestore()
}

func restoreRunning(ctx context.Context, d *dataDir, file string) error {
	client, err := clientv3.New(d.etcdClient())
	if err != nil {
		return err
	}
	defer client.Close()
	answer, err := client.Get(ctx, "/")
	if err != nil {
		return fmt.Errorf("ask the running server for its revision: %w; stop it and repeat the restore", err)
	}
	if err := d.prepareRestore(file, answer.Header.Revision); err != nil {
		return err
	}
	fmt.Println("the running server restarts itself")
	if err := d.waitReady(ctx); err != nil {
		return fmt.Errorf("the restored store is in place for the server's next start: %w", err)
	}
	fmt.Printf("restored %s; the store from before is kept as %s.before-restore-*\n", file, d.file(etcdDirName))
	return nil
}

// revisionAtRest is an upper bound, within the margin, of what the stopped server's store handed out.
func (d *dataDir) revisionAtRest() int64 {
	status, err := snapshot.NewV3(zap.NewNop()).Status(storeFile(d.file(etcdDirName)))
	if err != nil {
		// A lost or broken store may be the very reason for the restore. Milliseconds since 1970 are above what it
		// reached, short of a thousand restores or a thousand writes in every second since then.
		fmt.Fprintf(os.Stderr, "vireo-standalone: the present store cannot be read (%v), its revision is taken to be below the clock's\n", err)
		return time.Now().UnixMilli()
	}
	return status.Revision
}

// prepareRestore makes the store that replaces the present one.
func (d *dataDir) prepareRestore(file string, present int64) error {
	working, err := os.MkdirTemp(d.path, "etcd.restoring-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(working)
	// Twice: the first time has the digest verified, before anything maps the file into memory where a truncated one
	// is a crash and not an error, and tells the revision.
	plain, bumped := filepath.Join(working, "plain"), filepath.Join(working, "bumped")
	err = unpack(file, plain, 0)
	if err == nil {
		var status snapshot.Status
		if status, err = snapshot.NewV3(zap.NewNop()).Status(storeFile(plain)); err == nil {
			err = unpack(file, bumped, uint64(max(present-status.Revision, 0)+revisionMargin))
		}
	}
	if err != nil {
		return fmt.Errorf("restore from %s: %w; nothing was changed", file, err)
	}
	if err := os.Rename(bumped, d.file(restoredDirName)); err != nil {
		return fmt.Errorf("another restore waits for the server's restart: %w", err)
	}
	return syncDir(d.path)
}

func unpack(file, store string, bump uint64) error {
	member := embed.NewConfig()
	return snapshot.NewV3(zap.NewNop()).Restore(snapshot.RestoreConfig{
		SnapshotPath:        file,
		Name:                member.Name,
		OutputDataDir:       store,
		PeerURLs:            []string{member.AdvertisePeerUrls[0].String()},
		InitialCluster:      member.InitialCluster,
		InitialClusterToken: member.InitialClusterToken,
		RevisionBump:        bump,
		MarkCompacted:       bump > 0,
	})
}

func storeFile(store string) string { return filepath.Join(store, "member", "snap", "db") }

func (d *dataDir) restorePending() bool {
	_, err := os.Stat(d.file(restoredDirName))
	return err == nil
}

// finishRestore puts a prepared store in the place of the present one, which is kept. It can be interrupted anywhere
// and repeated.
func (d *dataDir) finishRestore() error {
	if !d.restorePending() {
		return nil
	}
	present := d.file(etcdDirName)
	kept := present + ".before-restore-" + time.Now().UTC().Format("20060102T150405.000Z")
	if err := os.Rename(present, kept); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Rename(d.file(restoredDirName), present); err != nil {
		return err
	}
	fmt.Printf("the store was replaced by the restored one; the one from before, if any, is kept as %s\n", kept)
	return syncDir(d.path)
}
