// Pictures to token features with the engine, in C++17 with TensorRT and CUDA alone.
//
//     ./encode ENGINE/engine.plan OUT a.ppm b.ppm
//
// reads binary PPM pictures of any size and writes OUT/NAME-000000.npy, float32 (tokens, channels), per stream and picture.
// To a student with memory the pictures are the frames of one camera. The resize is that of export/runtime/preprocess.py:
// bilinear, half-pixel centres, widened when shrinking. Works with TensorRT 10.3 to 11. `install_check` tests the engine itself.

#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "student.hpp"  // size, mean, std and tensors of this model, written by `vega-edge bundle`

namespace {

struct Picture {
  int height, width;
  std::vector<std::uint8_t> rgb;  // height * width * 3
};

class Logger : public nvinfer1::ILogger {
  void log(Severity severity, const char* message) noexcept override {
    if (severity <= Severity::kERROR) std::cerr << message << '\n';
  }
};

void check(cudaError_t code, const char* what) {
  if (code != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(code));
}

std::vector<char> read_file(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) throw std::runtime_error(path + ": cannot be read");
  return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

int read_number(std::istream& stream) {  // of a PPM header, where # starts a comment
  stream >> std::ws;
  while (stream.peek() == '#') {
    std::string comment;
    std::getline(stream, comment);
    stream >> std::ws;
  }
  int value = 0;
  stream >> value;
  return value;
}

Picture read_ppm(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) throw std::runtime_error(path + ": cannot be read");
  std::string magic;
  stream >> magic;
  Picture picture{};
  picture.width = read_number(stream);
  picture.height = read_number(stream);
  const int largest = read_number(stream);
  stream.get();
  if (magic != "P6" || largest != 255 || std::min(picture.width, picture.height) < 1 ||
      std::max(picture.width, picture.height) > 1 << 15) {
    throw std::runtime_error(path + ": a binary PPM (P6, 8 bit) expected");
  }
  picture.rgb.resize(static_cast<std::size_t>(picture.height) * picture.width * 3);
  stream.read(reinterpret_cast<char*>(picture.rgb.data()), static_cast<std::streamsize>(picture.rgb.size()));
  if (!stream) throw std::runtime_error(path + ": shorter than its header says");
  return picture;
}

// Row i holds the weights with which the source pixels make target pixel i; every row sums to 1.
std::vector<float> resize_weights(int source, int target) {
  const double scale = static_cast<double>(source) / target, support = std::max(1.0, scale);
  std::vector<float> weights(static_cast<std::size_t>(source) * target);
  std::vector<double> row(source);
  for (int i = 0; i < target; ++i) {
    double sum = 0;
    for (int j = 0; j < source; ++j) sum += row[j] = std::max(0.0, 1.0 - std::abs(j + 0.5 - (i + 0.5) * scale) / support);
    for (int j = 0; j < source; ++j) weights[static_cast<std::size_t>(i) * source + j] = static_cast<float>(row[j] / sum);
  }
  return weights;
}

// float32 (3, student::height, student::width), normalised unless the model does so.
std::vector<float> preprocess(const Picture& picture) {
  const int h = student::height, w = student::width, row = picture.width * 3;
  const auto down = resize_weights(picture.height, h), across = resize_weights(picture.width, w);
  std::vector<float> rows(static_cast<std::size_t>(h) * row, 0.f);
  for (int y = 0; y < h; ++y) {
    for (int j = 0; j < picture.height; ++j) {
      const float weight = down[static_cast<std::size_t>(y) * picture.height + j];
      if (weight == 0.f) continue;
      const std::uint8_t* source = &picture.rgb[static_cast<std::size_t>(j) * row];
      for (int x = 0; x < row; ++x) rows[static_cast<std::size_t>(y) * row + x] += weight * (source[x] / 255.f);
    }
  }
  std::vector<float> images(static_cast<std::size_t>(3) * h * w, 0.f);
  for (int x = 0; x < w; ++x) {
    for (int j = 0; j < picture.width; ++j) {
      const float weight = across[static_cast<std::size_t>(x) * picture.width + j];
      if (weight == 0.f) continue;
      for (int c = 0; c < 3; ++c)
        for (int y = 0; y < h; ++y)
          images[(static_cast<std::size_t>(c) * h + y) * w + x] += weight * rows[static_cast<std::size_t>(y) * row + j * 3 + c];
    }
  }
  for (int c = 0; c < 3; ++c)
    for (int i = 0; i < h * w; ++i) {
      float& value = images[static_cast<std::size_t>(c) * h * w + i];
      if (!student::pixels) value = (value - student::mean[c]) / student::std[c];
    }
  return images;
}

// What a model that normalises by itself takes: uint8 (height, width, 3).
std::vector<std::uint8_t> to_pixels(const std::vector<float>& images) {
  std::vector<std::uint8_t> pixels(images.size());
  const std::size_t plane = images.size() / 3;
  for (std::size_t i = 0; i < plane; ++i)
    for (std::size_t c = 0; c < 3; ++c) {
      pixels[i * 3 + c] = static_cast<std::uint8_t>(std::clamp(std::nearbyint(images[c * plane + i] * 255.f), 0.f, 255.f));
    }
  return pixels;
}

void write_npy(const std::string& path, const std::vector<float>& values, int tokens, int channels) {
  std::string head = "{'descr': '<f4', 'fortran_order': False, 'shape': (" + std::to_string(tokens) + ", " +
                     std::to_string(channels) + "), }";
  head.resize((head.size() + 10) / 64 * 64 + 64 - 10 - 1, ' ');
  head += '\n';
  std::ofstream stream(path, std::ios::binary);
  stream.write("\x93NUMPY\x01\x00", 8);
  stream.put(static_cast<char>(head.size() & 255)).put(static_cast<char>(head.size() >> 8)) << head;
  stream.write(reinterpret_cast<const char*>(values.data()), static_cast<std::streamsize>(values.size() * sizeof(float)));
  if (!stream) throw std::runtime_error(path + ": cannot be written");
}

class Encoder {
 public:
  explicit Encoder(const std::string& path) {
    const auto plan = read_file(path);
    runtime_.reset(nvinfer1::createInferRuntime(logger_));
    if (runtime_) {
      runtime_->setEngineHostCodeAllowed(true);  // one built with --any-version carries its own runtime; run only your own
      engine_.reset(runtime_->deserializeCudaEngine(plan.data(), plan.size()));
    }
    if (engine_ && engine_->isRefittable()) {  // of ours, only those without weights are
      throw std::runtime_error(path + ": holds no weights, and this program puts none back; build it again without --strip");
    }
    if (engine_) context_.reset(engine_->createExecutionContext());
    if (!context_) throw std::runtime_error(path + ": TensorRT cannot load it; build it again on this machine");
    check(cudaStreamCreate(&stream_), "cudaStreamCreate");
    allocate(input, static_cast<std::size_t>(3) * student::height * student::width);
    const nvinfer1::Dims4 planes{1, 3, student::height, student::width}, pixels{1, student::height, student::width, 3};
    context_->setInputShape(input, student::pixels ? pixels : planes);
    for (const auto& output : student::outputs) allocate(output.name, size(output));
    for (const auto& state : student::states) {
      check(cudaMemset(allocate(state.name, size(state)), 0, size(state) * sizeof(float)), "cudaMemset");
      allocate("next_" + std::string(state.name), size(state));
      context_->setInputShape(state.name, nvinfer1::Dims3{1, state.tokens, state.channels});
    }
  }

  ~Encoder() {
    for (const auto& buffer : buffers_) cudaFree(buffer.second);
    cudaStreamDestroy(stream_);
  }

  Encoder(const Encoder&) = delete;
  Encoder& operator=(const Encoder&) = delete;

  // One frame from `preprocess`; the outputs stay on the device until `read`.
  void encode(const std::vector<float>& images) {
    const auto pixels = student::pixels ? to_pixels(images) : std::vector<std::uint8_t>();
    const void* source = student::pixels ? static_cast<const void*>(pixels.data()) : images.data();
    copy(buffers_.at(input), source, student::pixels ? pixels.size() : images.size() * sizeof(float), cudaMemcpyHostToDevice);
    if (!context_->enqueueV3(stream_)) throw std::runtime_error("the engine did not run; build it again on this machine");
    for (const auto& state : student::states) {
      const std::size_t bytes = size(state) * sizeof(float);
      copy(buffers_.at(state.name), buffers_.at("next_" + std::string(state.name)), bytes, cudaMemcpyDeviceToDevice);
    }
    check(cudaStreamSynchronize(stream_), "the engine");
  }

  std::vector<float> read(const student::Tensor& output) {
    std::vector<float> values(size(output));
    copy(values.data(), buffers_.at(output.name), values.size() * sizeof(float), cudaMemcpyDeviceToHost);
    check(cudaStreamSynchronize(stream_), "reading features");
    if (!std::all_of(values.begin(), values.end(), [](float value) { return std::isfinite(value); })) {
      throw std::runtime_error(std::string(output.name) + ": not finite; export with --precision fp32");
    }
    return values;
  }

 private:
  static constexpr const char* input = student::pixels ? "frames" : "images";

  static std::size_t size(const student::Tensor& tensor) { return static_cast<std::size_t>(tensor.tokens) * tensor.channels; }

  void* allocate(const std::string& name, std::size_t floats) {
    void*& pointer = buffers_[name];
    check(cudaMalloc(&pointer, floats * sizeof(float)), "cudaMalloc");
    if (!context_->setTensorAddress(name.c_str(), pointer)) throw std::runtime_error("the engine has no tensor " + name);
    return pointer;
  }

  void copy(void* target, const void* source, std::size_t bytes, cudaMemcpyKind kind) {
    check(cudaMemcpyAsync(target, source, bytes, kind, stream_), "cudaMemcpyAsync");
  }

  Logger logger_;
  std::unique_ptr<nvinfer1::IRuntime> runtime_;  // destroyed last
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
  std::unique_ptr<nvinfer1::IExecutionContext> context_;
  cudaStream_t stream_ = nullptr;
  std::map<std::string, void*> buffers_;
};

}  // namespace

int main(int count, char** arguments) {
  if (count < 4) {
    std::cerr << "usage: encode ENGINE/engine.plan OUT a.ppm [b.ppm ...]\n";
    return 2;
  }
  try {
    Encoder encoder(arguments[1]);
    for (int index = 3; index < count; ++index) {
      encoder.encode(preprocess(read_ppm(arguments[index])));
      char number[16];
      std::snprintf(number, sizeof number, "-%06d.npy", index - 3);
      for (const auto& output : student::outputs) {
        write_npy(std::string(arguments[2]) + "/" + output.name + number, encoder.read(output), output.tokens, output.channels);
      }
    }
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << '\n';
    return 2;
  }
  return 0;
}
