package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"syscall"

	"github.com/spf13/pflag"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	cliflag "k8s.io/component-base/cli/flag"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
	"k8s.io/kubernetes/cmd/kube-apiserver/app/options"
)

const (
	serviceNetwork      = "10.0.0.0/24"
	kubernetesServiceIP = "10.0.0.1"
	tokenIssuer         = "https://kubernetes.default.svc.cluster.local"
)

// authenticationConfig lets somebody without credentials ask whether the server is alive, and nothing else.
const authenticationConfig = `apiVersion: apiserver.config.k8s.io/v1
kind: AuthenticationConfiguration
anonymous:
  enabled: true
  conditions:
  - path: /livez
  - path: /readyz
  - path: /healthz
`

// listen opens the API server's port, itself and early: for one clear line if that is taken.
func listen(address string, port int) (net.Listener, error) {
	if net.ParseIP(address) == nil {
		return nil, fmt.Errorf("--bind-address %q: not an IP address", address)
	}
	listener, err := net.Listen("tcp", net.JoinHostPort(address, strconv.Itoa(port)))
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("port %d on %s is in use by another process; stop that one or choose another --port", port, address)
	}
	return listener, err
}

// runAPIServer runs kube-apiserver on the listener until the context ends.
func runAPIServer(ctx context.Context, d *dataDir, p *pki, listener net.Listener) error {
	authentication := d.file("authentication.yaml")
	if err := writeFile(authentication, []byte(authenticationConfig), 0o600); err != nil {
		return err
	}
	flags := []string{
		"--etcd-servers=" + d.etcdEndpoint(),
		fmt.Sprintf("--secure-port=%d", listener.Addr().(*net.TCPAddr).Port),
		"--tls-cert-file=" + p.pair("server"),
		"--tls-private-key-file=" + p.pair("server"),
		"--client-ca-file=" + p.certificate("client-ca"),
		"--authentication-config=" + authentication,
		"--authorization-mode=RBAC",
		"--service-account-issuer=" + tokenIssuer,
		"--service-account-key-file=" + p.pair("service-account"),
		"--service-account-signing-key-file=" + p.pair("service-account"),
		// A token lives as long as it was asked to.
		"--service-account-extend-token-expiration=false",
		"--service-cluster-ip-range=" + serviceNetwork,
		// No pod looks for the Service "kubernetes", and loopback is no valid endpoint of it.
		"--advertise-address=127.0.0.1",
		"--endpoint-reconciler-type=none",
		// Ends watches when the server stops; without it their clients hold up the stop.
		"--shutdown-watch-termination-grace-period=1s",
		"--profiling=false",
	}
	o := options.NewServerRunOptions()
	if err := parseFlags("kube-apiserver", o.Flags(), flags); err != nil {
		return err
	}
	o.SecureServing.Listener = listener
	if err := o.GenericServerRunOptions.ComponentGlobalsRegistry.Set(); err != nil {
		return err
	}
	completed, err := o.Complete(ctx)
	if err != nil {
		return err
	}
	if errs := completed.Validate(); len(errs) > 0 {
		return utilerrors.NewAggregate(errs)
	}
	return app.Run(ctx, completed)
}

// parseFlags gives a Kubernetes component its flags, as its own command would.
func parseFlags(component string, sets cliflag.NamedFlagSets, flags []string) error {
	all := pflag.NewFlagSet(component, pflag.ContinueOnError)
	for _, set := range sets.FlagSets {
		all.AddFlagSet(set)
	}
	return all.Parse(flags)
}
