// The tests run the built binary as a user would. They live outside package main so that running them does not link
// all of Kubernetes once more.
package main_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// patience is how long anything may take on a busy machine.
const patience = 90 * time.Second

// binary is the built server: $VIREO_STANDALONE_BIN or where make puts it.
func binary(t *testing.T) string {
	t.Helper()
	path := os.Getenv("VIREO_STANDALONE_BIN")
	if path == "" {
		path = "../target/tools/vireo-standalone"
	}
	path, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Skipf("SKIPPED %s: the server is not built: %v; run: make tools", t.Name(), err)
	}
	return path
}

// server is a running vireo-standalone.
type server struct {
	dir    string
	cmd    *exec.Cmd
	output *output
	exited chan struct{}
}

// output collects what a process prints while it runs.
type output struct {
	mutex sync.Mutex
	text  bytes.Buffer
}

func (o *output) Write(data []byte) (int, error) {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	return o.text.Write(data)
}

func (o *output) String() string {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	return o.text.String()
}

// dataDir is a short path: unix sockets live in it.
func dataDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "vireo-standalone-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "data")
}

// startServer starts a server and waits until it says that it is ready.
func startServer(t *testing.T, dir string, flags ...string) *server {
	t.Helper()
	s := launch(t, dir, nil, flags...)
	s.waitReady(t)
	return s
}

func (s *server) waitReady(t *testing.T) {
	t.Helper()
	eventually(t, "the server is ready", func() error {
		select {
		case <-s.exited:
			t.Fatalf("the server ended:\n%s", s.output)
		default:
		}
		if !strings.Contains(s.output.String(), " is ready at ") {
			return fmt.Errorf("output so far:\n%s", s.output)
		}
		return nil
	})
}

func launch(t *testing.T, dir string, environment []string, flags ...string) *server {
	t.Helper()
	s := &server{dir: dir, output: &output{}, exited: make(chan struct{})}
	s.cmd = exec.Command(binary(t), append([]string{"serve", "--data-dir", dir, "--port", "0"}, flags...)...)
	s.cmd.Stdout, s.cmd.Stderr = s.output, s.output
	s.cmd.Env = append(os.Environ(), environment...)
	// A test that dies takes its server along.
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(s.exited)
		s.cmd.Wait()
	}()
	t.Cleanup(func() { s.end(t, syscall.SIGKILL) })
	return s
}

// end sends a signal, waits for the process to be gone and returns how it ended.
func (s *server) end(t *testing.T, signal syscall.Signal) *os.ProcessState {
	t.Helper()
	// An error means that it is gone already.
	_ = s.cmd.Process.Signal(signal)
	select {
	case <-s.exited:
	case <-time.After(patience):
		t.Errorf("the server did not end after %v:\n%s", signal, s.output)
	}
	return s.cmd.ProcessState
}

// run runs a command of the binary and returns its exit code and all it printed.
func run(t *testing.T, args ...string) (int, string) {
	t.Helper()
	cmd := exec.Command(binary(t), args...)
	text, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), string(text)
}

func mustRun(t *testing.T, args ...string) string {
	t.Helper()
	code, text := run(t, args...)
	if code != 0 {
		t.Fatalf("vireo-standalone %s: exit code %d:\n%s", strings.Join(args, " "), code, text)
	}
	return text
}

// config reads the administrator's kubeconfig as it is now.
func (s *server) config(t *testing.T) *rest.Config {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", filepath.Join(s.dir, "admin.kubeconfig"))
	if err != nil {
		t.Fatal(err)
	}
	config.QPS = -1
	config.Timeout = 0
	return config
}

func (s *server) client(t *testing.T) kubernetes.Interface {
	t.Helper()
	client, err := kubernetes.NewForConfig(s.config(t))
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func (s *server) dynamic(t *testing.T) dynamic.Interface {
	t.Helper()
	client, err := dynamic.NewForConfig(s.config(t))
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// eventually repeats a check until it passes or patience ends.
func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-deadline:
			t.Fatalf("%s: not after %s: %v", what, patience, err)
		case <-tick.C:
		}
	}
}

func configMap(name, value string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{"value": value}}
}

func createConfigMap(t *testing.T, client kubernetes.Interface, name string) *corev1.ConfigMap {
	t.Helper()
	made, err := client.CoreV1().ConfigMaps("default").Create(context.Background(), configMap(name, name), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return made
}
