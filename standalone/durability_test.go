package main_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
)

// acknowledged is what the API server said yes to, for one writer.
type acknowledged struct {
	counter int
	present map[string]bool
	absent  map[string]bool
}

// write creates, updates and deletes until the server is gone.
func (a *acknowledged) write(client kubernetes.Interface, writer, round int, total *atomic.Int64) {
	ctx := context.Background()
	maps := client.CoreV1().ConfigMaps("default")
	name := func(i int) string { return fmt.Sprintf("r%d-w%d-%d", round, writer, i) }
	for i := 0; ; i++ {
		if _, err := maps.Create(ctx, configMap(name(i), name(i)), metav1.CreateOptions{}); err != nil {
			return
		}
		a.present[name(i)] = true
		counter := configMap(fmt.Sprintf("counter-%d", writer), strconv.Itoa(a.counter+1))
		if _, err := maps.Update(ctx, counter, metav1.UpdateOptions{}); err != nil {
			return
		}
		a.counter++
		if i >= 5 {
			// An unacknowledged deletion leaves open what is there.
			delete(a.present, name(i-5))
			if err := maps.Delete(ctx, name(i-5), metav1.DeleteOptions{}); err != nil {
				return
			}
			a.absent[name(i-5)] = true
		}
		total.Add(1)
	}
}

func (a *acknowledged) check(t *testing.T, writer int, stored map[string]string) {
	t.Helper()
	for name := range a.present {
		if stored[name] != name {
			t.Errorf("ConfigMap %s was acknowledged and is gone", name)
		}
	}
	for name := range a.absent {
		if _, exists := stored[name]; exists {
			t.Errorf("the deletion of ConfigMap %s was acknowledged and it is there", name)
		}
	}
	value, err := strconv.Atoi(stored[fmt.Sprintf("counter-%d", writer)])
	// One more may have been written without its answer having come through.
	if err != nil || value < a.counter || value > a.counter+1 {
		t.Errorf("counter of writer %d: %d was acknowledged, %d is stored (%v)", writer, a.counter, value, err)
	}
	a.counter = value
}

func TestKillDuringWrites(t *testing.T) {
	t.Parallel()
	const writers, rounds, enough = 6, 3, 150
	dir := dataDir(t)
	s := startServer(t, dir)
	states := make([]acknowledged, writers)
	for i := range states {
		states[i] = acknowledged{0, map[string]bool{}, map[string]bool{}}
		counter := configMap(fmt.Sprintf("counter-%d", i), "0")
		if _, err := s.client(t).CoreV1().ConfigMaps("default").Create(context.Background(), counter, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	for round := range rounds {
		var total atomic.Int64
		var running sync.WaitGroup
		client := s.client(t)
		for i := range states {
			running.Go(func() { states[i].write(client, i, round, &total) })
		}
		eventually(t, "enough is written", func() error {
			if done := total.Load(); done < enough {
				return fmt.Errorf("%d rounds of writes", done)
			}
			return nil
		})
		s.end(t, syscall.SIGKILL)
		running.Wait()

		s = startServer(t, dir)
		list, err := s.client(t).CoreV1().ConfigMaps("default").List(context.Background(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		stored := map[string]string{}
		for _, item := range list.Items {
			stored[item.Name] = item.Data["value"]
		}
		for i := range states {
			states[i].check(t, i, stored)
		}
		t.Logf("killed after %d rounds of writes, %d objects after the restart", total.Load(), len(list.Items))
	}
}

func TestBackupRestore(t *testing.T) {
	t.Parallel()
	dir := dataDir(t)
	file := filepath.Join(filepath.Dir(dir), "backup.db")
	if code, text := run(t, "backup", "--data-dir", dir, file); code == 0 || !strings.Contains(text, "no server has run on data directory") {
		t.Errorf("backup of nothing: exit code %d: %s", code, text)
	}
	s := startServer(t, dir)
	client := s.client(t)
	before := createConfigMap(t, client, "before")
	mustRun(t, "backup", "--data-dir", dir, file)
	after := createConfigMap(t, client, "after")
	open, err := client.CoreV1().ConfigMaps("default").Watch(context.Background(), metav1.ListOptions{ResourceVersion: after.ResourceVersion})
	if err != nil {
		t.Fatal(err)
	}

	refuseDamaged(t, dir, file)
	createConfigMap(t, client, "still-serving")
	address := s.config(t).Host
	mustRun(t, "restore", "--data-dir", dir, file)
	for range open.ResultChan() { // ends, because the server restarted
	}
	if s.cmd.ProcessState != nil || s.config(t).Host != address {
		t.Errorf("the server at %s did not restart in place", address)
	}
	present := checkRestored(t, s, before.UID, after.ResourceVersion)

	// The same backup once more: the revision grows on, it does not repeat.
	createConfigMap(t, s.client(t), "after")
	mustRun(t, "restore", "--data-dir", dir, file)
	present = checkRestored(t, s, before.UID, present)

	// And all of it with the server down.
	createConfigMap(t, s.client(t), "after")
	if state := s.end(t, syscall.SIGTERM); state.ExitCode() != 0 {
		t.Errorf("SIGTERM: %v:\n%s", state, s.output)
	}
	second := filepath.Join(filepath.Dir(dir), "second.db")
	mustRun(t, "backup", "--data-dir", dir, second)
	mustRun(t, "restore", "--data-dir", dir, file)
	s = startServer(t, dir)
	present = checkRestored(t, s, before.UID, present)
	mustRun(t, "restore", "--data-dir", dir, second)
	if _, err := s.client(t).CoreV1().ConfigMaps("default").Get(context.Background(), "after", metav1.GetOptions{}); err != nil {
		t.Errorf("backup of a stopped server: %v", err)
	}
	kept, err := filepath.Glob(filepath.Join(dir, "etcd.before-restore-*", "member"))
	if err != nil || len(kept) != 4 {
		t.Errorf("stores kept: %v, want 4 (%v)", kept, err)
	}
}

func refuseDamaged(t *testing.T, dir, file string) {
	t.Helper()
	contents, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	flipped := append([]byte{}, contents...)
	flipped[len(flipped)/2] ^= 1
	for name, damaged := range map[string][]byte{"truncated": contents[:len(contents)/2], "flipped": flipped, "empty": nil} {
		path := filepath.Join(filepath.Dir(dir), name)
		if err := os.WriteFile(path, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		if code, text := run(t, "restore", "--data-dir", dir, path); code == 0 || !strings.Contains(text, "nothing was changed") {
			t.Errorf("restore of a %s backup: exit code %d: %s", name, code, text)
		}
	}
}

// checkRestored checks that the contents are the backup's, that revisions went on growing from the last one known, and
// that nobody can continue from that. It returns the present revision.
func checkRestored(t *testing.T, s *server, uid any, known string) string {
	t.Helper()
	ctx := context.Background()
	maps := s.client(t).CoreV1().ConfigMaps("default")
	if found, err := maps.Get(ctx, "before", metav1.GetOptions{}); err != nil || any(found.UID) != uid {
		t.Errorf("object from before the backup: %v", err)
	}
	if _, err := maps.Get(ctx, "after", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("object from after the backup: %v", err)
	}
	list, err := maps.List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	was, err1 := strconv.ParseInt(known, 10, 64)
	is, err2 := strconv.ParseInt(list.ResourceVersion, 10, 64)
	if err := errors.Join(err1, err2); err != nil || is <= was {
		t.Errorf("resourceVersion %s before the restore, %s after it (%v)", known, list.ResourceVersion, err)
	}
	if err := gone(ctx, s.client(t), known); err != nil {
		t.Error(err)
	}
	return list.ResourceVersion
}

func gone(ctx context.Context, client kubernetes.Interface, resourceVersion string) error {
	stream, err := client.CoreV1().ConfigMaps("default").Watch(ctx, metav1.ListOptions{ResourceVersion: resourceVersion})
	if apierrors.IsGone(err) || apierrors.IsResourceExpired(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer stream.Stop()
	event := <-stream.ResultChan()
	if status, ok := event.Object.(*metav1.Status); event.Type == watch.Error && ok && status.Code == http.StatusGone {
		return nil
	}
	return fmt.Errorf("a watch from revision %s got %s %v, want 410 Gone", resourceVersion, event.Type, event.Object)
}
