package main_test

import (
	"context"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestSecondProcessRefused(t *testing.T) {
	t.Parallel()
	dir := dataDir(t)
	first := startServer(t, dir)

	code, text := run(t, "serve", "--data-dir", dir, "--port", "0")
	if code == 0 || strings.Count(text, "\n") != 1 || !strings.Contains(text, fmt.Sprintf("in use by another process (pid %d)", first.cmd.Process.Pid)) {
		t.Errorf("second server on the same data directory: exit code %d:\n%s", code, text)
	}
	address, err := url.Parse(first.config(t).Host)
	if err != nil {
		t.Fatal(err)
	}
	code, text = run(t, "serve", "--data-dir", dataDir(t), "--port", address.Port())
	if code == 0 || strings.Count(text, "\n") != 1 || !strings.Contains(text, "port "+address.Port()+" on 127.0.0.1 is in use") {
		t.Errorf("second server on the same port: exit code %d:\n%s", code, text)
	}
	createConfigMap(t, first.client(t), "undisturbed")
}

// TestOthersKeptOut gives the server a directory that everybody may enter: what they find is closed.
func TestOthersKeptOut(t *testing.T) {
	t.Parallel()
	dir := dataDir(t)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	startServer(t, dir)
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s is open to others: %v", path, info.Mode())
		}
		if entry.IsDir() {
			return fs.SkipDir // closed, whatever is in it
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestStopsOnTerm also plays systemd: READY=1 must not come before the API is usable.
func TestStopsOnTerm(t *testing.T) {
	t.Parallel()
	dir := dataDir(t)
	socket := filepath.Join(filepath.Dir(dir), "notify.sock")
	notifications, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer notifications.Close()
	s := launch(t, dir, []string{"NOTIFY_SOCKET=" + socket})
	expectNotification(t, notifications, "READY=1")

	client := s.client(t)
	made := createConfigMap(t, client, "first")
	open, err := client.CoreV1().ConfigMaps("default").Watch(context.Background(), metav1.ListOptions{ResourceVersion: made.ResourceVersion})
	if err != nil {
		t.Fatal(err)
	}
	defer open.Stop()
	started := time.Now()
	state := s.end(t, syscall.SIGTERM)
	if state.ExitCode() != 0 {
		t.Errorf("ended with %v:\n%s", state, s.output)
	}
	if took := time.Since(started); took > 30*time.Second {
		t.Errorf("stopping took %s", took)
	}
	expectNotification(t, notifications, "STOPPING=1")
	if strings.Contains(s.output.String(), "\nE") {
		t.Errorf("errors were logged:\n%s", s.output)
	}
}

func expectNotification(t *testing.T, from *net.UnixConn, want string) {
	t.Helper()
	if err := from.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	buffer := make([]byte, 256)
	n, err := from.Read(buffer)
	if err != nil || strings.TrimSpace(string(buffer[:n])) != want {
		t.Fatalf("service manager got %q (%v), want %s", buffer[:n], err, want)
	}
}
