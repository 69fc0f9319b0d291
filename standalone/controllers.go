package main

import (
	"context"
	"strings"
	"time"

	"k8s.io/client-go/transport"
	"k8s.io/kubernetes/cmd/kube-controller-manager/app"
	"k8s.io/kubernetes/cmd/kube-controller-manager/app/options"
	"k8s.io/kubernetes/cmd/kube-controller-manager/names"
)

const controllersStopTimeout = 3 * time.Second

// controllers are the loops that a Vireo and its chart rely on. There are no nodes, pods or volumes here.
var controllers = []string{
	names.GarbageCollectorController,
	names.NamespaceController,
	names.ServiceAccountController,
	names.ServiceAccountTokenController,
	names.RootCACertificatePublisherController,
	names.CertificateSigningRequestSigningController,
	names.CertificateSigningRequestCleanerController,
	names.ClusterRoleAggregationController,
	names.ResourceQuotaController,
	names.ValidatingAdmissionPolicyStatusController,
}

// runControllers runs the kube-controller-manager loops until the context ends. The API server must be ready.
func runControllers(ctx context.Context, d *dataDir, p *pki) error {
	// client-go looks this seldom at a renewed client certificate; it must see one well within its last third.
	transport.CertCallbackRefreshDuration = min(transport.CertCallbackRefreshDuration, p.lifetime/20)
	flags := []string{
		"--kubeconfig=" + d.file(controllerKubeconfigName),
		"--controllers=" + strings.Join(controllers, ","),
		"--use-service-account-credentials=true",
		"--service-account-private-key-file=" + p.pair("service-account"),
		"--root-ca-file=" + p.certificate("server-ca"),
		// Only client certificates are signed here; who may have one is decided by the approval.
		"--cluster-signing-kube-apiserver-client-cert-file=" + p.pair("client-ca"),
		"--cluster-signing-kube-apiserver-client-key-file=" + p.pair("client-ca"),
		"--leader-elect=false",
		"--secure-port=0",
		"--controller-shutdown-timeout=" + controllersStopTimeout.String(),
		"--profiling=false",
	}
	o, err := options.NewKubeControllerManagerOptions()
	if err != nil {
		return err
	}
	known, off, aliases := app.KnownControllers(), app.ControllersDisabledByDefault(), app.ControllerAliases()
	if err := parseFlags("kube-controller-manager", o.Flags(known, off, aliases), flags); err != nil {
		return err
	}
	config, err := o.Config(ctx, known, off, aliases)
	if err != nil {
		return err
	}
	return app.Run(ctx, config.Complete())
}
