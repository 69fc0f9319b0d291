package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/component-base/version"
)

const (
	userAgent    = "vireo-standalone"
	readyTimeout = 3 * time.Minute
	// stopTimeout bounds the wait for requests under way. Nothing acknowledged depends on it.
	stopTimeout = 10 * time.Second
)

type serveOptions struct {
	dataDir             string
	bindAddress         string
	port                int
	advertiseNames      []string
	certificateLifetime time.Duration
	verbose             bool
}

// serve runs the control plane until SIGTERM or SIGINT. After a restore it replaces the process by a new run of itself,
// because the Kubernetes components keep global state and can run only once per process.
func serve(o serveOptions) error {
	ctx, stopSignals := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stopSignals()
	context.AfterFunc(ctx, stopSignals) // a second signal ends the process at once

	// Hidden from kube-apiserver, which would announce itself as soon as it listens.
	socket := os.Getenv("NOTIFY_SOCKET")
	os.Unsetenv("NOTIFY_SOCKET")
	notify := func(state string) {
		if socket != "" {
			os.Setenv("NOTIFY_SOCKET", socket)
			// A service manager that does not listen is no reason to stop.
			_, _ = daemon.SdNotify(true, state)
		}
	}
	restart, err := serveOnce(ctx, &o, notify)
	if err != nil || !restart {
		return err
	}
	// The last --port counts. Not os.Executable: the file may have been replaced by an upgrade meanwhile.
	args := append(os.Args, fmt.Sprintf("--port=%d", o.port))
	return syscall.Exec("/proc/self/exe", args, append(os.Environ(), "NOTIFY_SOCKET="+socket))
}

// serveOnce replaces a port of 0 in the options by the one it got.
func serveOnce(ctx context.Context, o *serveOptions, notify func(string)) (restart bool, err error) {
	logs, err := configureLogging(o.verbose)
	if err != nil {
		return false, err
	}
	d, err := openDataDir(o.dataDir)
	if err != nil {
		return false, err
	}
	defer d.Close()
	if err := d.finishRestore(); err != nil {
		return false, err
	}
	listener, err := listen(o.bindAddress, o.port)
	if err != nil {
		return false, err
	}
	defer listener.Close()
	bind := listener.Addr().(*net.TCPAddr)
	o.port = bind.Port
	p, err := openPKI(d.file("pki"), o.certificateLifetime, serverNames(bind.IP, o.advertiseNames))
	if err != nil {
		return false, err
	}
	renew := func() error {
		if err := p.renew(); err != nil {
			return err
		}
		return p.writeKubeconfigs(d, serverURL(bind))
	}
	if err := renew(); err != nil {
		return false, err
	}

	// Ends with the signal, or with the first part that fails and that error as its cause. The parts themselves are
	// stopped in turn.
	running, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	etcd, err := startEtcd(d)
	if err != nil {
		return false, err
	}
	defer stopEtcd(etcd)
	stopAPIServer := start("kube-apiserver", fail, func(ctx context.Context) error { return runAPIServer(ctx, d, p, listener) })
	defer stopAPIServer(stopTimeout)
	if err := d.waitReady(running); ctx.Err() != nil {
		logs.silent.Store(true)
		return false, nil // told to stop meanwhile
	} else if err != nil {
		return false, fmt.Errorf("not ready: %w", err)
	}
	stopControllers := start("kube-controller-manager", fail, func(ctx context.Context) error { return runControllers(ctx, d, p) })
	defer stopControllers(controllersStopTimeout + time.Second)
	defer logs.silent.Store(true)

	fmt.Printf("vireo-standalone %s is ready at %s, administrator's kubeconfig: %s\n",
		version.Get().GitVersion, serverURL(bind), d.file(adminKubeconfigName))
	notify(daemon.SdNotifyReady)

	restores := time.NewTicker(time.Second)
	defer restores.Stop()
	renewals := time.NewTicker(min(p.lifetime/30, 10*time.Minute))
	defer renewals.Stop()
	for {
		select {
		case <-running.Done():
			if ctx.Err() == nil {
				return false, context.Cause(running)
			}
			notify(daemon.SdNotifyStopping)
			fmt.Println("vireo-standalone is stopping")
			return false, nil
		case err := <-etcd.Err():
			return false, fmt.Errorf("etcd: %w", err)
		case <-restores.C:
			if d.restorePending() {
				fmt.Println("vireo-standalone restarts itself on the restored store")
				return true, nil
			}
		case <-renewals.C:
			if !p.due() {
				continue
			}
			// A full disk passes; what is in use is still valid for a third of its life.
			if err := renew(); err != nil {
				fmt.Fprintf(os.Stderr, "vireo-standalone: certificates are not renewed, trying again: %v\n", err)
			} else {
				fmt.Printf("vireo-standalone renewed its certificates, valid for %s\n", p.lifetime)
			}
		}
	}
}

// start runs a part in the background; what it returns stops the part and waits for its end. A part that ends without
// being stopped has failed.
func start(name string, fail context.CancelCauseFunc, run func(context.Context) error) (stop func(time.Duration)) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := run(ctx); ctx.Err() == nil {
			fail(fmt.Errorf("%s ended: %w", name, err))
		}
	}()
	return func(timeout time.Duration) {
		cancel()
		select {
		case <-done:
		case <-time.After(timeout):
		}
	}
}

// waitReady waits until a server that runs on the present store answers and its own first objects exist.
func (d *dataDir) waitReady(ctx context.Context) error {
	last := errors.New("the server has not taken over the restored store")
	err := wait.PollUntilContextTimeout(ctx, 100*time.Millisecond, readyTimeout, true, func(ctx context.Context) (bool, error) {
		if !d.restorePending() {
			last = d.ready(ctx)
		}
		return last == nil, nil
	})
	if err != nil {
		return errors.Join(context.Cause(ctx), last)
	}
	return nil
}

func (d *dataDir) ready(ctx context.Context) error {
	config, err := clientcmd.BuildConfigFromFlags("", d.file(adminKubeconfigName))
	if err != nil {
		return err
	}
	config.Timeout = 5 * time.Second
	client, err := kubernetes.NewForConfig(rest.AddUserAgent(config, userAgent))
	if err != nil {
		return err
	}
	if err := client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error(); err != nil {
		return err
	}
	_, err = client.CoreV1().Namespaces().Get(ctx, metav1.NamespaceDefault, metav1.GetOptions{})
	return err
}

// serverURL is how a client on this machine reaches a server bound to an address.
func serverURL(bind *net.TCPAddr) string {
	host := bind.IP
	if host.IsUnspecified() {
		host = net.IPv4(127, 0, 0, 1)
	}
	return "https://" + net.JoinHostPort(host.String(), strconv.Itoa(bind.Port))
}
