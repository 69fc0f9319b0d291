package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

// maxSocketPath is what fits into the kernel's sun_path, the closing zero apart.
const maxSocketPath = 107

var errInUse = errors.New("in use by another process")

// dataDir is the directory with everything the server knows.
type dataDir struct {
	path string
	lock *os.File
}

// openDataDir makes the directory if it is missing and takes its lock. A directory that exists may be open to others;
// what matters in it is not.
func openDataDir(path string) (*dataDir, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	d := &dataDir{path: path}
	if excess := len(d.etcdSocket()) - maxSocketPath; excess > 0 {
		return nil, fmt.Errorf("data directory %s: the path is %d characters too long for the socket in it", path, excess)
	}
	if err := os.MkdirAll(d.file("run"), 0o700); err != nil {
		return nil, err
	}
	if d.lock, err = os.OpenFile(d.file("lock"), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, err
	}
	err = syscall.Flock(int(d.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		holder, _ := os.ReadFile(d.file("lock")) // only for the message
		err = fmt.Errorf("%w (pid %s); stop that one first, or use another --data-dir", errInUse, holder)
	} else if err == nil {
		err = errors.Join(d.lock.Truncate(0), os.WriteFile(d.file("lock"), []byte(strconv.Itoa(os.Getpid())), 0o600))
	}
	if err != nil {
		d.Close()
		return nil, fmt.Errorf("data directory %s: %w", path, err)
	}
	return d, nil
}

func (d *dataDir) file(name string) string { return filepath.Join(d.path, name) }

// Close gives the lock back.
func (d *dataDir) Close() { d.lock.Close() }

// writeFile replaces a file so that every reader, also one after a power cut, sees the old or the new contents whole.
// A file that has the contents already is left alone.
func writeFile(path string, contents []byte, mode os.FileMode) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, contents) {
		return nil
	}
	// Only the holder of the lock writes; a rest of a killed one is overwritten.
	temporary := path + ".new"
	file, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = file.Write(contents)
	if err := errors.Join(err, file.Sync(), file.Close()); err != nil {
		return err
	}
	if err := os.Rename(temporary, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(path string) error {
	directory, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(directory.Sync(), directory.Close())
}
