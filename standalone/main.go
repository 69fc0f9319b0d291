// Command vireo-standalone is a Kubernetes API for sites that have none: etcd, kube-apiserver, the loops of
// kube-controller-manager that Vireo relies on, and kubectl, as one process with one data directory.
package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"k8s.io/component-base/version"
)

const defaultDataDir = "/var/lib/vireo-standalone"

func main() {
	if filepath.Base(os.Args[0]) == "kubectl" {
		runKubectl(os.Args[1:], true)
		return
	}
	// Handed over before cobra looks at anything: flags and help after this word are kubectl's own.
	if len(os.Args) > 1 && os.Args[1] == "kubectl" {
		runKubectl(os.Args[2:], false)
		return
	}
	if err := newCommand().ExecuteContext(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "vireo-standalone:", err)
		os.Exit(1)
	}
}

func newCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "vireo-standalone",
		Short:         "A Kubernetes API in one process, for a Vireo without a Kubernetes of its own",
		Version:       version.Get().GitVersion,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	var options serveOptions
	root.PersistentFlags().StringVar(&options.dataDir, "data-dir", defaultDataDir, "directory that holds everything this server knows")
	add := func(use, short string, args cobra.PositionalArgs, run func(context.Context, []string) error) *pflag.FlagSet {
		command := &cobra.Command{Use: use, Short: short, Args: args, RunE: func(command *cobra.Command, args []string) error {
			return run(command.Context(), args)
		}}
		root.AddCommand(command)
		return command.Flags()
	}

	flags := add("serve", "Run the API server until SIGTERM", cobra.NoArgs,
		func(context.Context, []string) error { return serve(options) })
	flags.StringVar(&options.bindAddress, "bind-address", "127.0.0.1", "IP address to listen on; 0.0.0.0 for all")
	flags.IntVar(&options.port, "port", 6443, "port to listen on; 0 takes a free one at every start")
	flags.StringArrayVar(&options.advertiseNames, "advertise-name", nil, "further DNS name or IP address by which clients reach this server (repeatable)")
	flags.DurationVar(&options.certificateLifetime, "certificate-lifetime", 365*24*time.Hour, "lifetime of the certificates this server issues to itself and the administrator; renewed when a third is left")
	flags.BoolVar(&options.verbose, "verbose", false, "log all messages of the Kubernetes components")

	add("backup FILE", "Write a snapshot of the store to FILE; works while the server runs", cobra.ExactArgs(1),
		func(ctx context.Context, args []string) error { return backup(ctx, options.dataDir, args[0]) })
	add("restore FILE", "Replace the store by the snapshot in FILE; the server restarts itself, the old store is kept", cobra.ExactArgs(1),
		func(ctx context.Context, args []string) error { return restore(ctx, options.dataDir, args[0]) })

	var kubeconfig string
	flags = add("init", "Make the HostCluster \"default\" and let every authenticated user use it", cobra.NoArgs,
		func(context.Context, []string) error {
			return initDefaults(cmp.Or(kubeconfig, filepath.Join(options.dataDir, adminKubeconfigName)))
		})
	flags.StringVar(&kubeconfig, "kubeconfig", "", "kubeconfig to use (default: the administrator's in the data directory)")

	// Only listed for --help: main hands this word over before cobra runs.
	add("kubectl", "Run kubectl against this server", cobra.ArbitraryArgs, func(context.Context, []string) error { return nil })
	return root
}
