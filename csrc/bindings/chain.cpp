// The layers of a network one after the other in one call, forward and backward, as a training step of a small network
// wants: between two blocks the interpreter and autograd take a tenth of the time that a block takes.
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "blocks/classifier_loss.h"
#include "blocks/conv_norm_act.h"
#include "blocks/pooled_pointwise.h"
#include "cpu/memory.h"
#include "inverted_residual.h"

namespace greedynas::bindings {

namespace py = pybind11;

namespace {

constexpr std::int64_t kLine = 16;  // floats of a cache line

// Running statistics of a batch norm: which of the link's, values a channel and channels of the batch, its share;
// addresses of means, variances and counter.
using Running = std::tuple<std::size_t, std::int64_t, int, double, Address, Address, Address>;

// What HeadLoss takes besides its input: labels, smoothing, mask, scale; where the number of correct images goes.
using Targets = std::tuple<Address, float, Address, float, Address>;

struct Layout {
  std::vector<std::int64_t> offsets;  // of what is kept, moments first, in one array of floats; -1: there is none
  std::int64_t kept_floats;
  std::vector<Running> running;
  std::vector<std::int64_t> counts;  // of the parameters
  std::vector<Address> parameters;
};

// The arrays of a link.
class Places {
 public:
  Places(const Layout& layout, float* kept) : layout_(layout), kept_(kept) {}
  Address operator[](std::size_t i) const { return reinterpret_cast<Address>(floats_at(i)); }
  float* floats_at(std::size_t i) const { return layout_.offsets[i] < 0 ? nullptr : kept_ + layout_.offsets[i]; }

 private:
  const Layout& layout_;
  float* kept_;
};

// A part of a chain.
class Link {
 public:
  explicit Link(Layout layout) : layout_(std::move(layout)) {}
  Link(const Link&) = delete;
  Link& operator=(const Link&) = delete;
  virtual ~Link() = default;

  const Layout& layout() const { return layout_; }
  virtual std::int64_t x_rows() const = 0;
  virtual std::int64_t y_rows() const = 0;
  virtual int x_channels() const = 0;
  virtual int y_channels() const = 0;
  virtual norm::Storage storage() const = 0;  // of the result, and of x if that has a gradient
  std::int64_t x_floats() const { return norm::floats_for(storage(), x_rows() * x_channels()); }
  std::int64_t y_floats() const { return norm::floats_for(storage(), y_rows() * y_channels()); }
  virtual void forward(Place x, const Places& kept, const std::optional<Targets>& targets, Address y) const = 0;
  // gradients: of the parameters, to be written.
  virtual void backward(Place x, const Places& kept, Place grad, Address grad_x, const Address* gradients) const = 0;

 private:
  Layout layout_;
};

class InvertedResidualLink : public Link {
 public:
  // present: the parameters that there are, by their place in Gradients; depthwise weights and parts follow.
  InvertedResidualLink(Layout layout, const LaidBlock& block, std::vector<std::size_t> present)
      : Link(std::move(layout)), block_(block), present_(std::move(present)) {}

  std::int64_t x_rows() const override { return block_.block.rows(); }
  std::int64_t y_rows() const override { return block_.block.out_rows(); }
  int x_channels() const override { return block_.block.in; }
  int y_channels() const override { return block_.block.out; }
  norm::Storage storage() const override { return block_.block.storage; }

  void forward(Place x, const Places& kept, const std::optional<Targets>&, Address y) const override {
    run_forward(block_, x, moments(kept), others(kept), y);
  }

  void backward(Place x, const Places& kept, Place grad, Address grad_x, const Address* gradients) const override {
    Gradients own{};
    for (const std::size_t place : present_) own[place] = *gradients++;
    run_backward(block_, x, moments(kept), others(kept), grad, grad_x, own, gradients,
                 gradients + block_.block.depthwise.size());
  }

 private:
  static Moments moments(const Places& kept) { return {kept[0], kept[1], kept[2]}; }
  static Kept others(const Places& kept) { return {kept[3], kept[4], kept[5], kept[6], kept[7], kept[8], kept[9]}; }

  LaidBlock block_;
  std::vector<std::size_t> present_;
};

// Kept: moments, z.
class ConvNormActLink : public Link {
 public:
  ConvNormActLink(Layout layout, const blocks::ConvNormAct& layer) : Link(std::move(layout)), layer_(layer) {}

  std::int64_t x_rows() const override { return layer_.images * layer_.height * layer_.width; }
  std::int64_t y_rows() const override { return layer_.rows(); }
  int x_channels() const override { return layer_.in; }
  int y_channels() const override { return layer_.out; }
  norm::Storage storage() const override { return layer_.storage; }

  void forward(Place x, const Places& kept, const std::optional<Targets>&, Address y) const override {
    const cpu::Workspace workspace(blocks::workspace_floats(layer_));
    blocks::forward(layer_, floats(x.first), kept.floats_at(0), kept.floats_at(1), workspace.floats(), at<void>(y));
  }

  void backward(Place x, const Places& kept, Place grad, Address, const Address* gradients) const override {
    const cpu::Workspace workspace(blocks::workspace_floats(layer_));
    blocks::backward(layer_, floats(x.first), kept.floats_at(0), kept.floats_at(1),
                     {at<const void>(grad.first), grad.second}, workspace.floats(), floats(gradients[0]),
                     {floats(gradients[1]), floats(gradients[2])});
  }

 private:
  blocks::ConvNormAct layer_;
};

// Kept: moments, z, features, factors, gradient of the logits. The result is a number, the loss.
class HeadLossLink : public Link {
 public:
  HeadLossLink(Layout layout, const blocks::PooledPointwise& pooling, const blocks::ClassifierLoss& loss)
      : Link(std::move(layout)), pooling_(pooling), loss_(loss) {}

  std::int64_t x_rows() const override { return pooling_.images * pooling_.pixels; }
  std::int64_t y_rows() const override { return 1; }
  int x_channels() const override { return pooling_.in; }
  int y_channels() const override { return 1; }
  norm::Storage storage() const override { return pooling_.storage; }

  void forward(Place x, const Places& kept, const std::optional<Targets>& targets, Address y) const override {
    const auto& [labels, smoothing, mask, scale, correct] = targets.value();
    const blocks::ClassifierKept of_loss = of_classifier(kept);
    {
      const cpu::Workspace workspace(blocks::workspace_floats(pooling_));
      blocks::forward(with_input(pooling_, x), kept.floats_at(0), kept.floats_at(1), workspace.floats(),
                      of_loss.features);
    }
    const cpu::Workspace workspace(blocks::workspace_floats(loss_));
    const blocks::ClassifierResult result = blocks::forward(
        loss_, {at<const std::int64_t>(labels), smoothing, at<const float>(mask), scale}, of_loss, workspace.floats());
    *floats(y) = result.loss;
    *at<std::int64_t>(correct) = result.correct;
  }

  void backward(Place x, const Places& kept, Place grad, Address grad_x, const Address* gradients) const override {
    const cpu::Workspace grad_features(loss_.images * loss_.features);
    {
      const cpu::Workspace workspace(blocks::workspace_floats(loss_));
      blocks::backward(loss_, *floats(grad.first), of_classifier(kept), workspace.floats(),
                       {grad_features.floats(), floats(gradients[3]), floats(gradients[4])});
    }
    const cpu::Workspace workspace(blocks::workspace_floats(pooling_));
    blocks::backward(with_input(pooling_, x), kept.floats_at(0), kept.floats_at(1), grad_features.floats(),
                     workspace.floats(),
                     {at<void>(grad_x), floats(gradients[0]), {floats(gradients[1]), floats(gradients[2])}});
  }

 private:
  static blocks::ClassifierKept of_classifier(const Places& kept) {
    return {kept.floats_at(2), kept.floats_at(3), kept.floats_at(4)};
  }

  blocks::PooledPointwise pooling_;
  blocks::ClassifierLoss loss_;
};

// An array that outlives a call.
using Array = std::unique_ptr<float, decltype(&cpu::give_back_memory)>;

Array make_array(std::int64_t floats) {
  return {static_cast<float*>(cpu::take_memory(floats * static_cast<std::int64_t>(sizeof(float)))),
          &cpu::give_back_memory};
}

Address address_of(const Array& array) { return reinterpret_cast<Address>(array.get()); }

// Links, and what their forward pass has left for the backward pass.
class Chain {
 public:
  explicit Chain(std::vector<std::shared_ptr<Link>> links) : links_(std::move(links)) {}

  // Called once. targets: of the last link, if it is a HeadLossLink. y: where the result goes.
  void forward(Place x, const std::optional<Targets>& targets, Address y) {
    for (const auto& link : links_) {
      kept_.push_back(make_array(link->layout().kept_floats));
      const bool last = kept_.size() == links_.size();
      results_.push_back(make_array(last ? 0 : link->y_floats()));
      const Address to = last ? y : address_of(results_.back());
      const Places kept(link->layout(), kept_.back().get());
      link->forward(x, kept, targets, to);
      update_running(*link, kept);
      x = {to, link->y_channels()};
    }
  }

  // Whether all parameters are between two addresses: then gradients are added to what is so many bytes behind them.
  bool sums_at(Address begin, Address end, std::int64_t distance) {
    sums_.clear();
    for (const auto& link : links_) {
      for (const Address parameter : link->layout().parameters) {
        if (parameter < begin || parameter >= end) return false;
        sums_.push_back(parameter + static_cast<Address>(distance));
      }
    }
    return true;
  }

  // x as in the forward pass; grad: of the result. grad_x: where the gradient of x goes, if there is one. The
  // parameters' gradients are added to `sums`, addresses in the order of the links and their parameters, or none, if
  // sums_at has said yes.
  void backward(Place x, Place grad, Address grad_x, const std::vector<Address>& sums) const {
    const std::vector<Address>& places = sums.empty() ? sums_ : sums;
    const Address* own_sums = places.data() + places.size();
    Array handed_on = make_array(0);
    for (std::size_t i = links_.size(); i-- > 0;) {
      const Link& link = *links_[i];
      const Place own_x = i == 0 ? x : Place{address_of(results_[i - 1]), link.x_channels()};
      Array own_grad = make_array(i == 0 ? 0 : link.x_floats());
      const Address to = i == 0 ? grad_x : address_of(own_grad);
      own_sums -= link.layout().counts.size();
      add_gradients(link, own_x, Places(link.layout(), kept_[i].get()), grad, to, own_sums);
      grad = {to, link.x_channels()};
      handed_on = std::move(own_grad);
    }
  }

 private:
  static void update_running(const Link& link, const Places& kept) {
    for (const auto& [which, values, channels, share, running_mean, running_var, counter] : link.layout().running) {
      const float* const mean = kept.floats_at(which);
      norm::update_running(norm::shape_of(norm::Storage::float32, values, channels), mean, mean + channels, share,
                           floats(running_mean), floats(running_var));
      if (counter != 0) ++*at<std::int64_t>(counter);
    }
  }

  static void add_gradients(const Link& link, Place x, const Places& kept, Place grad, Address grad_x,
                            const Address* sums) {
    const std::vector<std::int64_t>& counts = link.layout().counts;
    std::int64_t floats_in_all = 0;
    for (const std::int64_t count : counts) floats_in_all += padded(count);
    const cpu::Workspace found(floats_in_all);
    std::vector<Address> gradients;
    float* next = found.floats();
    for (const std::int64_t count : counts) {
      gradients.push_back(reinterpret_cast<Address>(next));
      next += padded(count);
    }
    link.backward(x, kept, grad, grad_x, gradients.data());
    // As add_arrays in optim.cpp.
    const py::gil_scoped_acquire locked;
    for (std::size_t k = 0; k < counts.size(); ++k) {
      float* const sum = floats(sums[k]);
      const float* const more = floats(gradients[k]);
      for (std::int64_t n = 0; n < counts[k]; ++n) sum[n] += more[n];
    }
  }

  static std::int64_t padded(std::int64_t count) { return (count + kLine - 1) / kLine * kLine; }

  std::vector<std::shared_ptr<Link>> links_;
  std::vector<Array> kept_, results_;  // of each link; the last result is the caller's
  std::vector<Address> sums_;
};

}  // namespace

void bind_chain(py::module_& m) {
  py::class_<Layout>(m, "LinkLayout")
      .def(py::init([](std::vector<std::int64_t> offsets, std::int64_t kept_floats, std::vector<Running> running,
                       std::vector<std::int64_t> counts, std::vector<Address> parameters) {
             return Layout{std::move(offsets), kept_floats, std::move(running), std::move(counts),
                           std::move(parameters)};
           }),
           py::arg("offsets"), py::arg("kept_floats"), py::arg("running"), py::arg("counts"), py::arg("parameters"));
  py::class_<Link, std::shared_ptr<Link>>(m, "Link");
  py::class_<InvertedResidualLink, Link, std::shared_ptr<InvertedResidualLink>>(m, "InvertedResidualLink")
      .def(py::init<Layout, const LaidBlock&, std::vector<std::size_t>>(), py::arg("layout"), py::arg("block"),
           py::arg("present"));
  py::class_<ConvNormActLink, Link, std::shared_ptr<ConvNormActLink>>(m, "ConvNormActLink")
      .def(py::init<Layout, const blocks::ConvNormAct&>(), py::arg("layout"), py::arg("layer"));
  py::class_<HeadLossLink, Link, std::shared_ptr<HeadLossLink>>(m, "HeadLossLink")
      .def(py::init<Layout, const blocks::PooledPointwise&, const blocks::ClassifierLoss&>(), py::arg("layout"),
           py::arg("pooling"), py::arg("loss"));
  py::class_<Chain>(m, "Chain")
      .def(py::init<std::vector<std::shared_ptr<Link>>>(), py::arg("links"))
      .def("forward", &Chain::forward, py::arg("x"), py::arg("targets"), py::arg("y"), Released())
      .def("sums_at", &Chain::sums_at, py::arg("begin"), py::arg("end"), py::arg("distance"))
      .def("backward", &Chain::backward, py::arg("x"), py::arg("grad"), py::arg("grad_x"), py::arg("sums"), Released());
}

}  // namespace greedynas::bindings
