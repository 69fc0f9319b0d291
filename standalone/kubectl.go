package main

import (
	"os"
	"path/filepath"

	// Credential plugins that kubeconfigs may name.
	_ "k8s.io/client-go/plugin/pkg/client/auth"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/component-base/cli"
	"k8s.io/component-base/logs"
	"k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/util"
)

// runKubectl is kubectl's own main. Without $KUBECONFIG it uses the administrator's of the default data directory, if the
// caller may read it; the plain kubectl only where there is no ~/.kube/config either.
func runKubectl(args []string, plain bool) {
	os.Args = append([]string{"kubectl"}, args...)
	admin := filepath.Join(defaultDataDir, adminKubeconfigName)
	if os.Getenv(clientcmd.RecommendedConfigPathEnvVar) == "" && readable(admin) && !(plain && readable(clientcmd.RecommendedHomeFile)) {
		os.Setenv(clientcmd.RecommendedConfigPathEnvVar, admin)
	}
	// kubectl reads its verbosity before the flags are parsed; without one there is nothing to set.
	_, _ = logs.GlogSetter(cmd.GetLogVerbosity(os.Args))
	if err := cli.RunNoErrOutput(cmd.NewDefaultKubectlCommand()); err != nil {
		util.CheckErr(err)
	}
}

func readable(path string) bool {
	file, err := os.Open(path)
	if err != nil {
		return false
	}
	return file.Close() == nil
}
