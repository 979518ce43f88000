// A runtime of forty lines: what CRI-O and nerdctl do with a conflist, done by the same library.
//
//	libcni-driver add|check|del CONFLIST BIN_DIR CACHE_DIR CONTAINER_ID NETNS IFNAME [CAPABILITY_ARGS_JSON]
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"github.com/containernetworking/cni/libcni"
)

func main() {
	if err := drive(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func drive(args []string) error {
	if len(args) < 7 {
		return fmt.Errorf("usage: libcni-driver add|check|del CONFLIST BIN_DIR CACHE_DIR CONTAINER_ID NETNS IFNAME [CAPABILITY_ARGS_JSON]")
	}
	list, err := libcni.ConfListFromFile(args[1])
	if err != nil {
		return err
	}
	cni := libcni.NewCNIConfigWithCacheDir([]string{args[2]}, args[3], nil)
	runtime := &libcni.RuntimeConf{ContainerID: args[4], NetNS: args[5], IfName: args[6]}
	if len(args) > 7 {
		if err := json.Unmarshal([]byte(args[7]), &runtime.CapabilityArgs); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	switch args[0] {
	case "add":
		result, err := cni.AddNetworkList(ctx, list, runtime)
		if err != nil {
			return err
		}
		return result.Print()
	case "check":
		return cni.CheckNetworkList(ctx, list, runtime)
	case "del":
		return cni.DelNetworkList(ctx, list, runtime)
	}
	return fmt.Errorf("%q is no verb: add, check, del", args[0])
}
